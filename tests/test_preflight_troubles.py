"""The lines that preflight prints for reports written by hand."""

import pytest

from framework.distributed.nodes.report import LATE, SILENT, Link, RankFacts, Report
from framework.distributed.processes.environment import ProcessInfo
from framework.preflight import Limits, clocks, troubles

GB = 10**9
LIMITS = Limits(disk=10, gpu=20, clock=1.0, link=100, link_share=0.1, all_reduce=50)
INFO = ProcessInfo(rank=0, local_rank=0, world_size=8, local_world_size=2)
NODES = ("a", "b", "c", "d")


def facts(rank: int, num_gpus: int = 2, gpu: str | None = "H100", free: int = 70 * GB, disk: int | None = 500 * GB):
    return RankFacts(rank, NODES[rank // 2], gpu, num_gpus, free, disk)


def report(**changed) -> Report:
    """Returns the report of four healthy nodes of two GPUs, with the given changes."""
    links = {(one, other): Link(1000.0, 0.0) for one in NODES for other in NODES if one < other}
    given = {"facts": [facts(rank) for rank in range(8)], "links": links, "all_reduce": {1: 10.0, 64: 900.0}}
    return Report(**given | changed)


def with_links(**speeds: float | None) -> dict:
    """Returns the links, some of them slower or dead, named by their two nodes."""
    changed = {tuple(name): Link(speed, 0.0, None if speed else f"{LATE} 9 s") for name, speed in speeds.items()}
    return report().links | changed


def with_facts(*changed: RankFacts) -> list[RankFacts]:
    return sorted({each.rank: each for each in [*report().facts, *changed]}.values(), key=lambda each: each.rank)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"facts": with_facts(facts(4, 1), facts(5, 1, None, 0))}, ["c: 1 GPUs, but others have 2"]),
        ({"facts": with_facts(facts(3, free=5 * GB))}, ["b: a GPU has 5.0 GB free, minimum 20"]),
        ({"facts": with_facts(facts(6, disk=GB))}, ["d: 1.0 GB free in the folder, minimum 10"]),
        (
            {"facts": with_facts(facts(6, disk=None))},
            ["d: it does not see the file of the first node in the folder, which all nodes must share"],
        ),
        (
            {"blind": [2, 3]},
            ["b: it does not see the file of the first node in the folder, which all nodes must share"],
        ),
        ({"links": with_links(bd=40.0)}, ["link of b and d: slow, 40.0 MB/s, minimum 100.0"]),
        ({"links": with_links(ac=None)}, [f"link of a and c: dead ({LATE} 9 s)"]),
        (
            {"links": with_links(ac=60.0, bc=50.0)},
            ["c: 2 of its 3 links are slow, 50.0 MB/s, minimum 100.0"],
        ),
        ({"all_reduce": {1: 60.0, 64: 20.0}}, ["all nodes: all-reduce at 20.0 MB/s, minimum 50"]),
        ({"stuck": {5: "card lost", 0: f"{LATE} 9 s"}}, ["c: all-reduce failed (card lost)"]),
        ({"stuck": {7: SILENT, 0: "closed"}}, [f"d: all-reduce failed ({SILENT})"]),
        ({"stuck": dict.fromkeys(range(8), f"{LATE} 9 s")}, [f"a, b, c, d: all-reduce failed ({LATE} 9 s)"]),
    ],
)
def test_the_node_is_named(changed, expected):
    assert troubles(report(**changed), INFO, LIMITS) == expected


def test_a_link_far_below_the_others_is_slow_whatever_the_minimum():
    collected = report(links={pair: Link(20_000.0, 0.0) for pair in report().links} | {("a", "d"): Link(1500.0, 0.0)})
    assert troubles(collected, INFO, LIMITS) == ["link of a and d: slow, 1500.0 MB/s, minimum 2000.0"]


def test_a_clock_is_compared_with_that_of_the_majority():
    first_is_wrong = {("a", other): Link(1000.0, -3.0) for other in "bcd"}
    collected = report(links=report().links | first_is_wrong)
    assert clocks(collected) == {"a": 3.0, "b": 0.0, "c": 0.0, "d": 0.0}
    assert troubles(collected, INFO, LIMITS) == ["a: its clock is 3.0 s ahead"]
    two = Report(facts=[facts(0), facts(2)], links={("a", "b"): Link(1000.0, -4.0)})
    assert clocks(two) == {"a": 0.0, "b": -4.0}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a,b,c,d", ["b: it did not answer", "d: it did not answer"]),
        ("", ["node 1 (ranks 2 to 3): it did not answer", "node 3 (ranks 6 to 7): it did not answer"]),
    ],
)
def test_a_missing_node_is_named_by_its_ranks(monkeypatch, names, expected):
    monkeypatch.setenv("CLOZE_NODES", names)
    collected = Report(facts=[facts(rank) for rank in (0, 1, 4, 5)], missing=[2, 3, 6])
    assert troubles(collected, INFO, LIMITS) == expected
