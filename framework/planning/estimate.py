"""Time of a step from its record and the rates of a device: a roofline with a range."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from framework.planning.fake_run import PhaseRecord
from framework.planning.hardware import Hardware
from framework.planning.recorder import Collective

_FLASH_FACTOR = 14.0
"""Operations of fused attention for each channel and pair of tokens: 4 forward, and 10 backward, which recomputes."""


@dataclass(frozen=True)
class Traffic:
    """Collectives of one step of one rank that are alike.

    Attributes:
        name: Operator.
        axis: Mesh axis.
        num_ranks: Number of ranks of the group.
        nodes: Number of nodes of the group.
        count: Number of calls.
        num_bytes: Bytes of their largest arguments together.
        seconds: Time at the full link bandwidth, and the latency.
    """

    name: str
    axis: str
    num_ranks: int
    nodes: int
    count: int
    num_bytes: int
    seconds: tuple[float, float]


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        products: Matrix products at the peak rate, and their starts.
        attention: Fused attention at the peak rate.
        memory: All other operators at the full memory bandwidth.
        operators: Starts of all operators, products among them.
        links: Collectives at the full link bandwidth, without latency.
        latency: Latency of the collectives.
        lowest: The larger of device and links, all at their highest shares.
        expected: The same at the middle of the shares.
        highest: Device and links one after the other, at their lowest shares.
        bound: Part that takes longest at the middle of the shares.
    """

    products: float
    attention: float
    memory: float
    operators: float
    links: float
    latency: float
    lowest: float
    expected: float
    highest: float
    bound: str


def traffic_of(collectives: Sequence[Collective], hardware: Hardware) -> list[Traffic]:
    """Groups the collectives of a step, the most bytes first."""
    groups: dict[tuple[str, str, int, int], list[Collective]] = defaultdict(list)
    for each in collectives:
        groups[each.name, each.axis, each.num_ranks, each.nodes].append(each)
    rows = []
    for (name, axis, num_ranks, nodes), members in groups.items():
        num_bytes = sum(each.num_bytes for each in members)
        moved = num_bytes * _passes(name) * (num_ranks - 1) / num_ranks
        latency = hardware.latency_seconds * (1 + math.log2(nodes)) * len(members)
        transfer = moved / hardware.link_rate(num_ranks, nodes) if moved else 0.0
        rows.append(Traffic(name, axis, num_ranks, nodes, len(members), num_bytes, (transfer, latency)))
    return sorted(rows, key=lambda row: -row.num_bytes)


def _passes(name: str) -> int:
    """Returns how often a ring passes the bytes on: a sum that all ranks get is scattered and gathered."""
    return 2 if name.startswith(("allreduce", "all_reduce")) else 1


def step_time(record: PhaseRecord, hardware: Hardware) -> StepTime:
    """Estimates the seconds of a step of a phase."""
    work = record.work
    products = sum(
        hardware.product_seconds(dtype, work.num_products[dtype], flops) for dtype, flops in work.flops.items()
    )
    precision = record.phase.module.precision
    attention = attention_flops(record) / hardware.peak_flops(str(precision.compute_dtype).removeprefix("torch."))
    if hardware.device != "cuda":
        attention = 0.0  # its products are counted
    memory = work.moved_bytes / (1e9 * hardware.memory_gb_per_second)
    operators = hardware.operator_seconds * work.num_operators
    rows = traffic_of(work.collectives, hardware)
    links, latency = sum(row.seconds[0] for row in rows), sum(row.seconds[1] for row in rows)

    def parts(share: int | None) -> dict[str, float]:
        matmul, moved, link = (
            sum(shares) / 2 if share is None else shares[share]
            for shares in (hardware.matmul_share, hardware.memory_share, hardware.link_share)
        )
        return {
            "matrix products": (products + attention) / matmul,
            "memory bandwidth": memory / moved,
            "communication": links / link + latency,
            "start of operators": operators,
        }

    def overlapped(seconds: dict[str, float]) -> float:
        return max(sum(seconds.values()) - seconds["communication"], seconds["communication"])

    middle = parts(None)
    return StepTime(
        products,
        attention,
        memory,
        operators,
        links,
        latency,
        lowest=overlapped(parts(1)),
        expected=overlapped(middle),
        highest=sum(parts(0).values()),
        bound=max(middle, key=lambda name: middle[name]),
    )


def attention_flops(record: PhaseRecord) -> float:
    """Returns the operations of fused attention in a step on one rank. Their number depends on lengths, not shapes."""
    config = record.phase.parts.config
    pairs = 0.0
    for index in range(config.num_layers):
        window = config.attention_window(index)
        pairs += sum(
            length * (length if window is None else min(length, window + 1)) for length in record.traced_lengths
        )
    return _FLASH_FACTOR * config.hidden_size * pairs * record.num_micro_batches / record.traced
