"""Text of a plan: rows of (name, text) for each phase, as `framework.plan` prints them."""

import math
from collections.abc import Iterator, Sequence

from framework.models.accounting import training_flops
from framework.planning.drawn_store import Lengths
from framework.planning.estimate import StepTime, attention_flops, step_time, traffic_of
from framework.planning.fake_run import PhaseRecord
from framework.planning.hardware import GIGA, TERA, Hardware
from framework.planning.settings import PlanSettings
from framework.tracking.quantities import format_duration, format_gb, format_seconds

Row = tuple[str, str]

_HOUR = 3600.0


def required_bytes(record: PhaseRecord, hardware: Hardware) -> float:
    """Returns the memory of a rank with fragments and reserves."""
    return record.step.peak.num_bytes * (1 + hardware.fragment_share) + GIGA * hardware.reserve_gb


def fits(record: PhaseRecord, hardware: Hardware) -> bool:
    """Returns True if a rank has memory for a step."""
    return required_bytes(record, hardware) <= hardware.memory_bytes


def describe_phase(record: PhaseRecord, hardware: Hardware, plan: PlanSettings, lengths: Lengths | None) -> list[Row]:
    """Describes the plan of a phase, or of a run without phases."""
    time = step_time(record, hardware)
    return [
        *_model(record, plan),
        *_memory(record, hardware),
        *_traffic(record, hardware),
        *_time(record, hardware, plan, time),
        *_run(record, hardware, plan, time, lengths),
    ]


def _model(record: PhaseRecord, plan: PlanSettings) -> Iterator[Row]:
    parts, shape = record.phase.parts, record.shape
    parameters = list(parts.model.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    total = sum(each.numel() for each in parameters)
    frozen = "" if trained == total else f", {trained:,} of them trained"
    yield "parameters", f"{total:,}{frozen}"
    strategy, precision = record.phase.settings.strategy.name, record.phase.module.precision.name
    axes = f"{shape.replicate} copies x {shape.shard} shards x {shape.tensor} tensor parallel"
    yield "ranks", f"{plan.nodes} x {plan.gpus_per_node} under strategy={strategy}: {axes}, {precision}"
    budget = record.phase.data.plans["train"].micro_batch_tokens
    yield (
        "step",
        f"{record.sequences:,} sequences, {record.tokens:,} tokens, micro-batches of a rank: "
        f"{record.num_micro_batches} of up to {budget:,} tokens",
    )
    size, ranks = record.sequences, shape.data_parallel_size
    if size < ranks:
        yield (
            "warning",
            f"{ranks - size:,} of {ranks:,} data-parallel ranks have no sequence in a step. Use at most {size:,} of "
            f"them, or set trainer.global_batch_size to at least {ranks}.",
        )
    elif size % ranks:
        lower = size // ranks * ranks
        yield (
            "warning",
            f"{size:,} sequences do not divide by {ranks:,} data-parallel ranks, so ranks have unequal numbers of them "
            f"and wait for each other. The nearest that divide are {lower:,} and {lower + ranks:,}.",
        )


def _memory(record: PhaseRecord, hardware: Hardware) -> Iterator[Row]:
    peak, required = record.step.peak, required_bytes(record, hardware)
    kinds = ", ".join(f"{kind} {format_gb(size)}" for kind, size in peak.by_kind.items() if size)
    yield "memory of a rank", f"{format_gb(peak.num_bytes)} at the peak: {kinds}"
    reserves = f"{format_gb(GIGA * hardware.reserve_gb)} for the device's own needs"
    reserves += f" and {hardware.fragment_share:.0%} for fragments"
    verdict = "fits" if fits(record, hardware) else "DOES NOT FIT"
    yield "", f"{format_gb(required)} with {reserves}, of {format_gb(GIGA * hardware.memory_gb)}: {verdict}"
    module = record.phase.module
    if module.compile_backend != "none":
        yield (
            "",
            "compiled layers run uncompiled here, at their fixed shapes: compiled ones keep fewer activations and move "
            "fewer bytes",
        )
    if module.build_graphs is not None:
        yield (
            "",
            f"CUDA graphs keep {format_gb(peak.by_kind['graphs'])}, and each is compared once with an ordinary run, "
            "which needs as much again",
        )
    if record.phase.graph_obstacle is not None:
        yield "", f"training steps are not captured as CUDA graphs, because {record.phase.graph_obstacle}"
    for block in peak.largest:
        shape = " x ".join(map(str, block.shape))
        yield "", f"{format_gb(block.num_bytes):>10}  {block.kind}, {shape} {block.dtype}: {block.origin}"


def _traffic(record: PhaseRecord, hardware: Hardware) -> Iterator[Row]:
    name = "collectives"
    for row in traffic_of(record.work.collectives, hardware):
        where = "within nodes" if row.nodes == 1 else f"between {row.nodes} nodes"
        yield (
            name,
            f"{row.count:,} {row.name} on {row.axis} ({row.num_ranks:,} ranks, {where}): {format_gb(row.num_bytes)}, "
            f"{format_seconds(sum(row.seconds))} at full rate",
        )
        name = ""
    if name:
        yield name, "none"
    elif record.num_micro_batches > record.traced:
        yield "", f"for {record.num_micro_batches} micro-batches, of which {record.traced} were traced"


def _time(record: PhaseRecord, hardware: Hardware, plan: PlanSettings, time: StepTime) -> Iterator[Row]:
    ranks = plan.nodes * plan.gpus_per_node
    attention = attention_flops(record) if hardware.device == "cuda" else 0.0
    flops = sum(record.work.flops.values())
    starts = f"starts of operators {format_seconds(time.operators)}, " if time.operators else ""
    fused = f" and {attention / TERA:,.2f} of fused attention" if attention else ""
    yield "operations of a rank", f"{flops / TERA:,.2f} TFLOP of matrix products{fused}"
    yield (
        "parts at full rate",
        f"matrix products {format_seconds(time.products + time.attention)}, "
        f"other operators {format_seconds(time.memory)}, "
        f"{starts}collectives {format_seconds(time.links)} and {format_seconds(time.latency)} of latency",
    )
    yield (
        "step time",
        f"{format_seconds(time.expected)}, from {format_seconds(time.lowest)} to {format_seconds(time.highest)}; "
        f"the longest part: {time.bound}",
    )
    rates = [record.tokens / seconds for seconds in (time.expected, time.highest, time.lowest)]
    yield "tokens a second", f"{rates[0]:,.0f}, from {rates[1]:,.0f} to {rates[2]:,.0f}"
    scale = record.num_micro_batches / record.traced
    model = training_flops(record.phase.parts.config, record.traced_lengths, record.predicted) * scale
    dtype = str(record.phase.module.precision.compute_dtype).removeprefix("torch.")
    usage = model / (time.expected * hardware.peak_flops(dtype))
    yield "MFU", f"{usage:.0%} of {hardware.peak_flops(dtype) / TERA:,.0f} TFLOP/s, on {ranks:,} x {hardware.name}"


def _run(
    record: PhaseRecord, hardware: Hardware, plan: PlanSettings, time: StepTime, lengths: Lengths | None
) -> Iterator[Row]:
    parts, ranks = record.phase.parts, plan.nodes * plan.gpus_per_node
    steps = parts.max_steps - parts.first_step
    seconds = [steps * each for each in (time.expected, time.lowest, time.highest)]
    hours = [ranks * each / _HOUR for each in seconds]
    spans = [format_duration(each) for each in seconds]
    text = f"{steps:,} steps in {spans[0]}, from {spans[1]} to {spans[2]}"
    yield "run", f"{text}; {hours[0]:,.0f} GPU hours, from {hours[1]:,.0f} to {hours[2]:,.0f}"
    if hardware.price_per_hour is not None:
        costs = [each * hardware.price_per_hour for each in hours]
        yield "cost", f"{costs[0]:,.0f}, from {costs[1]:,.0f} to {costs[2]:,.0f}"
    parts_of_weights = record.shape.shard * record.shape.tensor
    size = (record.step.weights_bytes + record.step.optimizer_bytes) * parts_of_weights
    writing = size / (GIGA * hardware.storage_gb_per_second * math.ceil(parts_of_weights / plan.gpus_per_node))
    yield "checkpoint", f"about {format_gb(size)}, written in {format_seconds(writing)}"
    source = record.phase.data.plans["train"].source
    tokens = len(source) * source.mean_length if lengths is None else float(lengths.documents * lengths.mean)
    trained = float(steps) * record.tokens
    yield "data", f"{trained:,.0f} tokens in these steps, {trained / tokens:,.2f} epochs of {tokens:,.0f} tokens"


def describe_plan(
    records: Sequence[PhaseRecord], hardware: Hardware, plan: PlanSettings, lengths: Lengths | None
) -> list[Row]:
    """Describes the plan of all phases of a run, and what was left out."""
    rows: list[Row] = []
    for record in records:
        if record.phase.phase.name:
            rows.append(("phase", record.phase.phase.name))
        rows += describe_phase(record, hardware, plan, lengths)
    not_planned = "growth of the batch, validation, and waiting for data"
    return [*rows, ("not planned", not_planned)]
