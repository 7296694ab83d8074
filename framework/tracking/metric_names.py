"""Defines label and unit of each metric key, and whether the metric depends on the clock."""

import re
from dataclasses import dataclass

CLOCK_PREFIXES = ("perf/", "plan/")
"""Keys with these prefixes depend on the clock, or come with those that do, and go to perf.jsonl.

All others are functions of the step.
"""


@dataclass(frozen=True)
class MetricName:
    """Label and unit of one metric. An empty unit means a pure number."""

    label: str
    unit: str = ""

    @property
    def with_unit(self) -> str:
        """Returns the label with the unit in brackets, if there is one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


_LAST_PARTS = {
    "loss": MetricName("loss", "nats"),
    "mlm_loss": MetricName("masked-word loss", "nats"),
    "nsp_loss": MetricName("next-sentence loss", "nats"),
    "generator_loss": MetricName("loss of the generator", "nats"),
    "discriminator_loss": MetricName("loss of the discriminator", "nats"),
    "generator_accuracy": MetricName("accuracy of the generator"),
    "discriminator_accuracy": MetricName("accuracy of the discriminator"),
    "replaced_precision": MetricName("precision of replaced tokens"),
    "replaced_recall": MetricName("recall of replaced tokens"),
    "replaced_share": MetricName("share of replaced tokens"),
    "z_loss": MetricName("z-loss", "nats squared"),
    "r_drop_loss": MetricName("R-Drop divergence", "nats"),
    "smoothing_loss": MetricName("label-smoothing loss", "nats"),
    "bleu": MetricName("BLEU (0 to 100)"),
    "chrf": MetricName("chrF (0 to 100)"),
    "mlm_accuracy": MetricName("masked-word accuracy"),
    "nsp_accuracy": MetricName("next-sentence accuracy"),
    "macro_f1": MetricName("macro F1"),
    "f1": MetricName("F1"),
    "has_answer_exact_match": MetricName("exact match, answerable questions"),
    "has_answer_f1": MetricName("F1, answerable questions"),
    "no_answer_exact_match": MetricName("exact match, unanswerable questions"),
    "no_answer_f1": MetricName("F1, unanswerable questions"),
    "entity_f1": MetricName("entity F1"),
    "argmax_entity_f1": MetricName("entity F1 of each word's largest score"),
    "relation_f1": MetricName("macro F1 of directed relations"),
    "micro_f1": MetricName("micro F1"),
    "matthews": MetricName("Matthews' correlation"),
    "in_scope_accuracy": MetricName("accuracy in scope"),
    "out_of_scope_auroc": MetricName("AUROC of out-of-scope detection"),
    "pearson": MetricName("Pearson's correlation"),
    "spearman": MetricName("Spearman's correlation"),
    "contrast_loss": MetricName("contrastive loss", "nats"),
    "reverse_contrast_loss": MetricName("contrastive loss from positive to anchor", "nats"),
    "mrr": MetricName("mean reciprocal rank"),
    "map": MetricName("mean average precision"),
    "popularity_recall_at_10": MetricName("recall at 10, popularity baseline"),
    "popularity_ndcg_at_10": MetricName("nDCG at 10, popularity baseline"),
    "ndcg_at_10_over_popularity": MetricName("nDCG at 10 above the popularity baseline"),
    "item_mean_recall_at_10": MetricName("recall at 10, mean-rating baseline"),
    "item_mean_ndcg_at_10": MetricName("nDCG at 10, mean-rating baseline"),
    "ndcg_at_10_over_item_mean": MetricName("nDCG at 10 above the mean-rating baseline"),
    "num_users": MetricName("evaluated users"),
    "cold_start_share": MetricName("share of likes without a history"),
    "mse": MetricName("mean squared error"),
    "tokens": MetricName("tokens seen", "tokens"),
    "lr": MetricName("learning rate"),
    "grad_norm": MetricName("gradient norm"),
    "skipped_steps": MetricName("skipped steps so far", "steps"),
    "overflow_steps": MetricName("steps skipped after an overflow", "steps"),
    "tokens_per_second": MetricName("throughput", "tokens/s"),
    "step_seconds": MetricName("time of a step", "s"),
    "step_ratio": MetricName("measured step time by planned one"),
    "memory_ratio": MetricName("measured memory by planned one"),
    "data_wait_seconds": MetricName("waiting for data", "s"),
    "checkpoint_stall_seconds": MetricName("waiting for checkpoints", "s"),
    "checkpoint_seconds": MetricName("writing checkpoints, background included", "s"),
    "validation_seconds": MetricName("validation", "s"),
    "probe_seconds": MetricName("scoring probes", "s"),
    "wall_seconds": MetricName("wall time", "s"),
    "micro_batches": MetricName("micro-batches per rank"),
    "memory_bytes": MetricName("peak memory of rank 0", "bytes"),
    "mfu": MetricName("model FLOPs utilisation"),
}

_AT_RANK = re.compile(r"(ndcg|mrr|map)_at_(\d+)")
_AT_RANK_LABELS = {"ndcg": "nDCG", "mrr": "mean reciprocal rank", "map": "mean average precision"}
_ERROR_OF_RANKING = re.compile(r"(\w+_at_\d+\w*)_error")
"""Matches standard errors of recommendation, for example `ndcg_at_10_error`."""


def describe(key: str) -> MetricName:
    """Returns label and unit of a metric key; only the part after the last slash counts.

    A name that is not in the table is its own label. Losses are in nats.
    """
    last_part = key.rsplit("/", 1)[-1]
    if last_part in _LAST_PARTS:
        return _LAST_PARTS[last_part]
    at_rank = _AT_RANK.fullmatch(last_part)
    if at_rank is not None:
        return MetricName(f"{_AT_RANK_LABELS[at_rank[1]]} at {at_rank[2]}")
    ranking = _ERROR_OF_RANKING.fullmatch(last_part)
    if ranking is not None:
        return MetricName(f"{describe(ranking[1]).label}: standard error over users")
    return MetricName(last_part.replace("_", " "), "nats" if last_part.endswith("_loss") else "")


def label_in_run(key: str) -> str:
    """Returns the label with its prefix: "val loss" for `val/loss`, "probe sst2 accuracy" for `probe/sst2/accuracy`."""
    return " ".join([*key.split("/")[:-1], describe(key).label])


def depends_on_clock(key: str) -> bool:
    """Returns True for metrics of perf.jsonl: time, throughput, memory, and the plan of them."""
    return key.startswith(CLOCK_PREFIXES)
