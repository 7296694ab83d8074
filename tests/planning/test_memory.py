"""Memory of steps: the pool that captured functions share."""

import torch

from framework.planning.memory import LiveMemory


def test_the_pool_of_graphs_has_room_for_the_largest_and_is_needed_besides():
    memory = LiveMemory()
    kept = torch.zeros(10)
    memory.add(kept, "kept")
    for sizes in ((100, 50), (30,)):
        with memory.captured():
            tensors = [torch.zeros(size) for size in sizes]
            for tensor in tensors:
                memory.add(tensor, "pass")
            del tensor, tensors
    assert (memory.pool, memory.now) == (4 * 150, 4 * 10)
    for is_second in (False, True):
        memory.begin(is_second)
        passing = torch.zeros(20)
        memory.add(passing, "pass")
        del passing
    peak = memory.read_peak()
    assert peak.num_bytes == 4 * (10 + 20 + 150) and peak.by_kind["graphs"] == 4 * 150
    assert [block.num_bytes for block in peak.largest] == [600, 80, 40]


def test_the_kind_of_a_block_that_lasts_is_not_that_of_a_new_one():
    memory = LiveMemory()
    memory.begin()
    lasting = torch.zeros(5)
    memory.add(lasting, "first step")
    for is_second in (False, True):
        memory.begin(is_second)
        new = torch.zeros(7)
        memory.add(new, "pass")
        memory.mark([lasting], "gathered weights")
        del new
    by_kind = memory.read_peak().by_kind
    assert (by_kind["activations"], by_kind["gathered weights"]) == (4 * 7, 4 * 5)
