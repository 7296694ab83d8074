"""The rounds in which pairs of nodes are measured, and links that hang."""

import itertools
import time

import pytest

from framework.distributed.nodes.links import rounds, within
from framework.errors import DistributedError


@pytest.mark.parametrize("count", range(1, 10))
def test_each_pair_is_measured_once_and_no_node_twice_in_a_round(count):
    plan = rounds(count)
    assert sorted(pair for pairs in plan for pair in pairs) == list(itertools.combinations(range(count), 2))
    for pairs in plan:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))
    assert len(plan) <= count + count % 2 - 1


def test_links_that_hang_or_fail_are_reported():
    assert within(5.0, lambda: 3) == 3
    with pytest.raises(DistributedError, match=r"no answer within 0\.05 s"):
        within(0.05, lambda: time.sleep(1))
    with pytest.raises(DistributedError, match=r"^Connection closed$"):
        within(5.0, lambda: exec('raise RuntimeError("Connection closed\\nby peer")'))
