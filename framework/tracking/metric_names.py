"""What each metric key means to a reader: its label, its unit, and whether it depends on the clock."""

from dataclasses import dataclass

PERF_PREFIX = "perf/"
"""Keys with this prefix depend on the clock and go to perf.jsonl; all others are functions of the step."""


@dataclass(frozen=True)
class MetricName:
    """Label and unit of one metric; an empty unit is a pure number."""

    label: str
    unit: str = ""


_LAST_PARTS = {
    "loss": MetricName("loss", "nats"),
    "mlm_loss": MetricName("masked-word loss", "nats"),
    "nsp_loss": MetricName("next-sentence loss", "nats"),
    "z_loss": MetricName("z-loss", "nats squared"),
    "classification_loss": MetricName("classification loss", "nats"),
    "mlm_accuracy": MetricName("masked-word accuracy"),
    "nsp_accuracy": MetricName("next-sentence accuracy"),
    "accuracy": MetricName("accuracy"),
    "macro_f1": MetricName("macro F1"),
    "tokens": MetricName("tokens seen", "tokens"),
    "lr": MetricName("learning rate"),
    "grad_norm": MetricName("gradient norm"),
    "skipped_steps": MetricName("skipped steps so far", "steps"),
    "loss_scale": MetricName("loss scale"),
    "overflow_steps": MetricName("skipped after an overflow", "steps"),
    "mask_rate": MetricName("mask rate"),
    "tokens_per_second": MetricName("throughput", "tokens/s"),
    "data_wait_seconds": MetricName("waiting for data", "s"),
    "checkpoint_stall_seconds": MetricName("standing still for checkpoints", "s"),
    "checkpoint_seconds": MetricName("writing checkpoints, beside training too", "s"),
    "validation_seconds": MetricName("validating", "s"),
    "wall_seconds": MetricName("wall time", "s"),
    "packing_efficiency": MetricName("packing efficiency"),
    "micro_batches": MetricName("micro-batches of a rank"),
    "memory_bytes": MetricName("peak memory of rank 0", "bytes"),
    "mfu": MetricName("model FLOPs utilisation"),
}


def describe(key: str) -> MetricName:
    """Label and unit of a metric key such as `val/macro_f1`; an unknown last part is shown as it is written."""
    last_part = key.rsplit("/", 1)[-1]
    return _LAST_PARTS.get(last_part, MetricName(last_part.replace("_", " ")))


def depends_on_clock(key: str) -> bool:
    """True for what goes to perf.jsonl: time, throughput, memory."""
    return key.startswith(PERF_PREFIX)
