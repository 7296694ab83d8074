"""Checks all nodes before a training: `python -m framework.preflight` under torchrun, or from slurm/train.sbatch.

Each process reports the GPUs of its node and their free memory, the free disk space, the clock, and whether it sees the
shared folder. Each pair of nodes measures its link, then all processes measure an all-reduce (NCCL on GPUs, else gloo).
If a node fails a check, one line names it, and all processes exit with code 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.table import Table

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.option_command import OptionParser, option_command
from framework.distributed.nodes.report import LATE, MEGABYTE, SILENT, Report
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.errors import ConfigError, DistributedError
from framework.tracking.console import open_console

_GIGABYTE = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """Requirements for each node. Bandwidths are in MB/s, sizes in GB.

    Attributes:
        disk: Minimum free space in the folder.
        gpu: Minimum free memory of each GPU.
        clock: Maximum difference between clocks in seconds.
        link: Minimum bandwidth between any two nodes.
        link_share: Minimum bandwidth of a link as a fraction of the median of all links; 0 disables the check.
        all_reduce: Minimum bandwidth of the largest all-reduce.
    """

    disk: float
    gpu: float
    clock: float
    link: float
    link_share: float
    all_reduce: float


def clocks(report: Report) -> dict[str, float]:
    """Returns the seconds by which the clock of each node is ahead of the median; with two nodes, of the first node."""
    first, *others = report.nodes
    ahead = {first: 0.0}
    for other in others:
        link = report.links.get((first, other))
        if link is not None and link.clock is not None:
            ahead[other] = link.clock
    usual = median(ahead.values()) if len(ahead) > 2 else 0.0
    return {node: seconds - usual for node, seconds in ahead.items()}


def bad_links(report: Report, limits: Limits) -> list[str]:
    """Describes slow and dead links; a node with more than half of its links bad gets one line for all of them."""
    speeds = {pair: link.speed or 0.0 for pair, link in report.links.items()}
    least = limits.link
    if len(speeds) > 2:
        least = max(least, limits.link_share * median(speeds.values()))
    slow = {pair: speed for pair, speed in speeds.items() if speed < least or report.links[pair].why is not None}
    lines = []
    for node in report.nodes:
        of_node = [pair for pair in slow if node in pair]
        if len(report.nodes) > 2 and 2 * len(of_node) > len(report.nodes) - 1:
            lines.append(
                f"{node}: {len(of_node)} of its {len(report.nodes) - 1} links are {_worst(report, of_node, least)}"
            )
            slow = {pair: speed for pair, speed in slow.items() if pair not in of_node}
    return lines + [f"link of {a} and {b}: {_worst(report, [(a, b)], least)}" for a, b in slow]


def _worst(report: Report, pairs: Sequence[tuple[str, str]], least: float) -> str:
    dead = [why for pair in pairs if (why := report.links[pair].why) is not None]
    if dead:
        return f"dead ({dead[0]})"
    return f"slow, {min(report.links[pair].speed or 0.0 for pair in pairs):.1f} MB/s, minimum {least:.1f}"


def troubles(report: Report, info: ProcessInfo, limits: Limits) -> list[str]:
    """Describes each failed check. Each line begins with the node.

    Args:
        report: Report on rank 0.
        info: Rank, local rank and world size of rank 0.
        limits: Requirements for each node.
    """
    if report.missing:
        silent = sorted({_node_of(rank, info) for rank in report.missing})
        return [f"{node}: it did not answer" for node in silent]
    lines = []
    most = max(each.num_gpus for each in report.facts)
    for node, facts in report.nodes.items():
        gpus, free_gpu = facts[0].num_gpus, min(each.free_gpu_bytes for each in facts) / _GIGABYTE
        if gpus < most:
            lines.append(f"{node}: {gpus} GPUs, but others have {most}")
        elif most and any(each.gpu is None for each in facts):
            lines.append(f"{node}: {gpus} GPUs for {len(facts)} processes")
        elif free_gpu < limits.gpu:
            lines.append(f"{node}: a GPU has {free_gpu:.1f} GB free, minimum {limits.gpu:g}")
        disks = [each.free_disk_bytes for each in facts]
        if None in disks or any(each.rank in report.blind for each in facts):
            lines.append(
                f"{node}: it does not see the file of the first node in the folder, which all nodes must share"
            )
        elif (free_disk := min(disk for disk in disks if disk is not None) / _GIGABYTE) < limits.disk:
            lines.append(f"{node}: {free_disk:.1f} GB free in the folder, minimum {limits.disk:g}")
    for node, ahead in clocks(report).items():
        if abs(ahead) > limits.clock:
            lines.append(f"{node}: its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}")
    lines += bad_links(report, limits)
    if report.stuck:
        lines.append(_stuck(report))
    elif report.all_reduce and (speed := report.all_reduce[max(report.all_reduce)]) < limits.all_reduce:
        lines.append(f"all nodes: all-reduce at {speed:.1f} MB/s, minimum {limits.all_reduce:g}")
    return lines


def _stuck(report: Report) -> str:
    """Describes a failed all-reduce and names the nodes at fault.

    These are the nodes without a report, else the node that failed first. After a timeout all nodes are named.
    """
    (first, why), *_ = report.stuck.items()
    ranks = [rank for rank, message in report.stuck.items() if message == SILENT] or [first]
    if why.startswith(LATE):
        ranks = list(report.stuck)
    nodes = [node for node, facts in report.nodes.items() if any(each.rank in ranks for each in facts)]
    return f"{', '.join(nodes)}: all-reduce failed ({why})"


def _node_of(rank: int, info: ProcessInfo) -> str:
    """Returns the name of the node of a rank that never answered. CLOZE_NODES lists the names in order."""
    index, names = rank // info.local_world_size, os.environ.get("CLOZE_NODES", "").split(",")
    if len(names) == info.num_nodes:
        return names[index]
    first = index * info.local_world_size
    return f"node {index} (ranks {first} to {first + info.local_world_size - 1})"


def report_table(report: Report) -> Table:
    """Builds a table with one row per node."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    for name in ("node", "processes", "GPUs", "free GPU GB", "free disk GB", "clock s", "slowest link MB/s"):
        table.add_column(name, justify="left" if name == "node" else "right", no_wrap=True)
    ahead = clocks(report)
    for node, facts in report.nodes.items():
        disk = facts[0].free_disk_bytes
        links = [link.speed or 0.0 for pair, link in report.links.items() if node in pair]
        table.add_row(
            node,
            str(len(facts)),
            f"{facts[0].num_gpus} {facts[0].gpu or ''}".strip(),
            f"{min(each.free_gpu_bytes for each in facts) / _GIGABYTE:.1f}" if facts[0].gpu else "",
            "" if disk is None else f"{disk / _GIGABYTE:,.0f}",
            f"{ahead[node]:+.3f}" if node in ahead else "",
            f"{min(links):,.0f}" if links else "",
        )
    return table


def _options() -> OptionParser:
    parser = OptionParser(
        "python -m framework.preflight [OPTION ...]", "check all nodes and their links; under torchrun or SLURM"
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs"), metavar="FOLDER", help="folder that all nodes share (runs)")
    add("--sizes", default="1,8,64", metavar="MB,...", help="sizes of the all-reduces (1,8,64)")
    add("--timeout", type=float, default=60.0, metavar="SECONDS", help="longest time of each check (60)")
    add("--min-disk", type=float, default=1.0, metavar="GB", help="free space in the folder (1)")
    add("--min-gpu", type=float, default=0.0, metavar="GB", help="free memory of each GPU (0)")
    add("--max-clock", type=float, default=1.0, metavar="SECONDS", help="difference between clocks (1)")
    add("--min-link", type=float, default=10.0, metavar="MB/S", help="speed between two nodes (10)")
    add("--min-link-share", type=float, default=0.1, metavar="X", help="share of the median speed of links (0.1)")
    add("--min-all-reduce", type=float, default=0.0, metavar="MB/S", help="speed of the largest all-reduce (0)")
    return parser


@option_command(_options)
def preflight(given: argparse.Namespace) -> None:
    """Checks the nodes, and reports on rank 0. All ranks end with the same exit code."""
    # Imported here because this imports torch, which takes seconds that `--help` and wrong options do not need.
    from framework.distributed.nodes.inspection import Inspection, open_store

    limits = Limits(
        given.min_disk, given.min_gpu, given.max_clock, given.min_link, given.min_link_share, given.min_all_reduce
    )
    try:
        sizes = [round(float(size) * MEGABYTE) for size in given.sizes.split(",")]
    except ValueError:
        raise ConfigError(
            f"--sizes is {given.sizes}. It must be numbers of MB, separated by commas. Give for example 1,8,64."
        ) from None
    info = process_info()
    inspection = Inspection(open_store(info, given.timeout), info, given.folder, sizes, given.timeout)
    report = inspection.run()
    sys.exit(inspection.agree(_print_report(report, troubles(report, info, limits)) if info.rank == 0 else 0))


def _print_report(report: Report, failures: Sequence[str]) -> int:
    """Prints the table and the failed checks, and returns the exit code."""
    console = open_console()
    console.print(report_table(report))
    for size, speed in report.all_reduce.items():
        console.print(f"all-reduce of {size / MEGABYTE:g} MB: {speed:,.1f} MB/s")
    if failures:
        sys.stderr.write(f"error: preflight: {'; '.join(failures)}\n")
        return DistributedError.exit_code
    return 0


def _end_process() -> None:
    """Runs the command. `os._exit` ends the process even if a measurement still hangs in its thread."""
    try:
        preflight()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end_process()
