"""Measures the machine at hand for a file of conf/hardware: its device, its links and its storage."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.distributed as dist

from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.distributed.processes.host_memory import keep_freed_memory
from framework.distributed.processes.process_group import process_group
from framework.planning.device_rates import copy_rate, operator_seconds, operator_shares, product_rates, seconds_of
from framework.planning.hardware import GIGA, TERA

_LINK_BYTES = 2**26
_STORED_BYTES = 2**28


_ASSUMED_LINKS = (10.0, 1.0, 5e-5)
"""GB/s within a node and to the network, and seconds of latency, that a file states if they were not measured."""
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Links:
    """Rates of collectives on the ranks of this start.

    Attributes:
        node_gb_per_second: Bandwidth of an all-reduce within a node.
        network_gb_per_second: Bandwidth of an all-reduce of one process of each node; None: there is one node.
        latency_seconds: Time of an all-reduce of one number within a node.
        small_share: Share of the bandwidth that an all-reduce of a sixteenth of the bytes reaches.
    """

    node_gb_per_second: float
    network_gb_per_second: float | None
    latency_seconds: float
    small_share: float


def measure_links(info: ProcessInfo, device: torch.device) -> Links | None:
    """Measures all-reduces; None if this is the only process. Collective: all ranks must call."""
    if info.world_size == 1:
        return None
    inner = _groups([range(first, first + info.local_world_size) for first in _firsts(info)], info.rank)
    node = _all_reduce_rate(inner, info.local_world_size, _LINK_BYTES, device) if info.local_world_size > 1 else None
    network = None
    if info.num_nodes > 1:
        outer = _groups([_firsts(info)], info.rank)
        if info.local_rank == 0:
            network = _all_reduce_rate(outer, info.num_nodes, _LINK_BYTES, device)
    fastest = node or network or 0.0
    group, ranks = (inner, info.local_world_size) if node else (dist.group.WORLD, info.world_size)
    small = _all_reduce_rate(group, ranks, _LINK_BYTES // 16, device)
    one = torch.zeros(1, device=device)
    latency = seconds_of(lambda: dist.all_reduce(one, group=group), device)
    return Links(fastest / GIGA, None if network is None else network / GIGA, latency, min(1.0, small / fastest))


def _firsts(info: ProcessInfo) -> range:
    return range(0, info.world_size, info.local_world_size)


def _groups(members: list[range], rank: int) -> dist.ProcessGroup | None:
    """Creates groups of ranks, and returns that of this rank."""
    groups = [dist.new_group(list(ranks)) for ranks in members]
    return next((group for group, ranks in zip(groups, members, strict=True) if rank in ranks), None)


def _all_reduce_rate(group: dist.ProcessGroup | None, ranks: int, num_bytes: int, device: torch.device) -> float:
    """Returns the bytes per second of a ring in one direction: each rank passes on twice the bytes of the others."""
    tensor = torch.zeros(num_bytes // 4, device=device)
    return 2.0 * num_bytes * (ranks - 1) / ranks / seconds_of(lambda: dist.all_reduce(tensor, group=group), device)


def storage_rate(folder: Path) -> float:
    """Returns the bytes per second at which a file is written to disk."""
    content = os.urandom(_STORED_BYTES // 16) * 16
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return len(content) / (time.perf_counter() - start)


def memory_bytes(info: ProcessInfo, device: torch.device) -> tuple[int, int]:
    """Returns the memory of this process's device, and the part that is in use beside torch's tensors."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, total - free - torch.cuda.memory_reserved(device)
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page
    return os.sysconf("SC_PHYS_PAGES") * page // info.local_world_size, resident


def measure(name: str, folder: Path, price: float | None) -> str | None:
    """Measures the device of this process, the links of all processes, and the storage of a folder.

    Collective: all ranks must call. Every rank measures its device at the same time as the others, as in a training.

    Args:
        name: Name for reports.
        folder: Folder to which checkpoints would be written; it is created.
        price: Price of an hour of one device; None: unknown.

    Returns:
        Text of a hardware file (YAML) on rank 0, None on others.
    """
    info = process_info()
    device = torch.device("cuda", info.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as a training does
    with process_group("ddp" if info.world_size > 1 else "single", device.type, _TIMEOUT_SECONDS):
        half, full = (product_rates(dtype, device) for dtype in (torch.bfloat16, torch.float32))
        started = operator_seconds(device) if device.type == "cpu" else 0.0
        copied = copy_rate(device)
        operators = operator_shares(copied, device)
        links = measure_links(info, device)
        total, used = memory_bytes(info, device)
    if info.rank != 0:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    stored = storage_rate(folder)
    values: dict[str, float | Sequence[float]] = {
        "bf16_tflops": half.peak / TERA,
        "fp32_tflops": full.peak / TERA,
        "bf16_product_seconds": half.start_seconds,
        "fp32_product_seconds": full.start_seconds,
        "matmul_share": [min(half.shares[0], full.shares[0]), 1.0],
        "operator_seconds": started,
        "memory_gb": total / GIGA,
        "reserve_gb": used / GIGA,
        "memory_gb_per_second": copied / GIGA,
        "memory_share": operators,
        "node_gb_per_second": _ASSUMED_LINKS[0] if links is None else links.node_gb_per_second,
        "network_gb_per_second": (links and links.network_gb_per_second) or _ASSUMED_LINKS[1],
        "link_share": [0.3, 0.9] if links is None else [links.small_share, 1.0],
        "latency_seconds": _ASSUMED_LINKS[2] if links is None else links.latency_seconds,
        "storage_gb_per_second": stored / GIGA,
    }
    return hardware_text(name, device, info, links, values, price)


def hardware_text(
    name: str,
    device: torch.device,
    info: ProcessInfo,
    links: Links | None,
    values: Mapping[str, float | Sequence[float]],
    price: float | None,
) -> str:
    """Returns a hardware file with a comment about its origin."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    counts = f"{info.num_nodes} x {info.local_world_size} processes"
    if links is None:
        missing = "Links were not measured, since there was one process: their values are assumptions."
    elif links.network_gb_per_second is None:
        missing = "There was one node: network_gb_per_second is an assumption."
    else:
        missing = "All links were measured."
    lines = [
        f"# Measured by python -m framework.calibrate on {date.today()}: {model}, {counts}, torch {torch.__version__}.",
        f"# {missing} fragment_share is an assumption. conf/hardware/_gpu.yaml explains the keys.",
        "_target_: framework.planning.hardware.Hardware",
        f"name: {name}",
        f"device: {device.type}",
        *(f"{key}: {_shown(value)}" for key, value in values.items()),
        "fragment_share: 0.05",
        f"price_per_hour: {'null' if price is None else price}",
    ]
    return "\n".join(lines) + "\n"


def _shown(value: float | Sequence[float]) -> str:
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:.3g}" if value >= 1e-3 or value == 0 else f"{value:.2e}"
