"""Results of an inspection of all nodes. Imports no torch, so that `--help` of the command starts quickly."""

from dataclasses import dataclass, field

MEGABYTE = 1_000_000
SILENT = "no report"
"""Reason for a rank without a report."""

LATE = "no answer within"
"""First words of the reason for a measurement that did not end in time."""


@dataclass(frozen=True)
class Link:
    """Result of a measurement between two nodes.

    Attributes:
        speed: Bandwidth in MB/s, the best of three round trips; None if the link is dead.
        clock: Seconds by which the clock of the second node is ahead; None if the link is dead.
        why: Reason for which the link is dead, else None.
    """

    speed: float | None
    clock: float | None
    why: str | None = None


@dataclass(frozen=True)
class RankFacts:
    """Report of one process about its node.

    Attributes:
        rank: Rank of the process.
        node: SLURM's name of the node, or its host name.
        gpu: Name of the process's GPU; None without a GPU.
        num_gpus: Number of GPUs that the process sees.
        free_gpu_bytes: Free memory of its GPU in bytes.
        free_disk_bytes: Free space on the folder's disk in bytes; None if the folder cannot be created or read.
    """

    rank: int
    node: str
    gpu: str | None
    num_gpus: int
    free_gpu_bytes: int
    free_disk_bytes: int | None


@dataclass
class Report:
    """Results that rank 0 has collected.

    Attributes:
        facts: Reports of the ranks that answered, in the order of ranks.
        missing: Ranks that did not answer.
        blind: Ranks that do not see the file that rank 0 wrote into the folder.
        links: Link of each pair of nodes.
        all_reduce: Bandwidth in MB/s by size in bytes.
        stuck: Ranks that did not complete the all-reduces, with their errors: first those without a report, then the
            others in the order in which they failed.
    """

    facts: list[RankFacts] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    blind: list[int] = field(default_factory=list)
    links: dict[tuple[str, str], Link] = field(default_factory=dict)
    all_reduce: dict[int, float] = field(default_factory=dict)
    stuck: dict[int, str] = field(default_factory=dict)

    @property
    def nodes(self) -> dict[str, list[RankFacts]]:
        """Reports by node, in the order of ranks."""
        by_node: dict[str, list[RankFacts]] = {}
        for each in self.facts:
            by_node.setdefault(each.node, []).append(each)
        return by_node
