"""Defines label and unit of each metric key, and whether the metric depends on the clock."""

from dataclasses import dataclass

PERF_PREFIX = "perf/"
"""Keys with this prefix depend on the clock and go to perf.jsonl; all others are functions of the step."""


@dataclass(frozen=True)
class MetricName:
    """Label and unit of one metric. An empty unit means a pure number."""

    label: str
    unit: str = ""


_LAST_PARTS = {
    "loss": MetricName("loss", "nats"),
    "mlm_loss": MetricName("masked-word loss", "nats"),
    "nsp_loss": MetricName("next-sentence loss", "nats"),
    "z_loss": MetricName("z-loss", "nats squared"),
    "r_drop_loss": MetricName("R-Drop divergence", "nats"),
    "adversarial_loss": MetricName("adversarial loss", "nats"),
    "classification_loss": MetricName("classification loss", "nats"),
    "translation_loss": MetricName("translation loss", "nats"),
    "smoothing_loss": MetricName("label-smoothing loss", "nats"),
    "perplexity": MetricName("perplexity"),
    "bleu": MetricName("BLEU (0 to 100)"),
    "chrf": MetricName("chrF (0 to 100)"),
    "relation_loss": MetricName("relation loss", "nats"),
    "choice_loss": MetricName("choice loss", "nats"),
    "mlm_accuracy": MetricName("masked-word accuracy"),
    "nsp_accuracy": MetricName("next-sentence accuracy"),
    "accuracy": MetricName("accuracy"),
    "macro_f1": MetricName("macro F1"),
    "exact_match": MetricName("exact match"),
    "f1": MetricName("F1"),
    "has_answer_exact_match": MetricName("exact match, answerable questions"),
    "has_answer_f1": MetricName("F1, answerable questions"),
    "no_answer_exact_match": MetricName("exact match, unanswerable questions"),
    "no_answer_f1": MetricName("F1, unanswerable questions"),
    "entity_precision": MetricName("entity precision"),
    "entity_recall": MetricName("entity recall"),
    "entity_f1": MetricName("entity F1"),
    "argmax_entity_f1": MetricName("entity F1 of each word's largest score"),
    "relation_f1": MetricName("macro F1 of directed relations"),
    "token_accuracy": MetricName("token accuracy"),
    "micro_f1": MetricName("micro F1"),
    "matthews": MetricName("Matthews' correlation"),
    "in_scope_accuracy": MetricName("accuracy in scope"),
    "out_of_scope_auroc": MetricName("AUROC of out-of-scope detection"),
    "pearson": MetricName("Pearson's correlation"),
    "spearman": MetricName("Spearman's correlation"),
    "contrast_loss": MetricName("contrastive loss", "nats"),
    "reverse_contrast_loss": MetricName("contrastive loss from positive to anchor", "nats"),
    "mrr": MetricName("mean reciprocal rank"),
    "hit_rate_at_1": MetricName("hit rate at 1"),
    "hit_rate_at_5": MetricName("hit rate at 5"),
    "hit_rate_at_10": MetricName("hit rate at 10"),
    "recall_at_1": MetricName("recall at 1"),
    "recall_at_5": MetricName("recall at 5"),
    "recall_at_10": MetricName("recall at 10"),
    "ndcg_at_10": MetricName("nDCG at 10"),
    "recommendation_loss": MetricName("recommendation loss", "nats"),
    "recall_at_20": MetricName("recall at 20"),
    "recall_at_10_error": MetricName("recall at 10: standard error over users"),
    "ndcg_at_5": MetricName("nDCG at 5"),
    "ndcg_at_20": MetricName("nDCG at 20"),
    "ndcg_at_10_error": MetricName("nDCG at 10: standard error over users"),
    "popularity_recall_at_10": MetricName("recall at 10, popularity baseline"),
    "popularity_recall_at_10_error": MetricName("recall at 10, popularity baseline: standard error over users"),
    "popularity_ndcg_at_10": MetricName("nDCG at 10, popularity baseline"),
    "popularity_ndcg_at_10_error": MetricName("nDCG at 10, popularity baseline: standard error over users"),
    "ndcg_at_10_over_popularity": MetricName("nDCG at 10 above the popularity baseline"),
    "ndcg_at_10_over_popularity_error": MetricName(
        "nDCG at 10 above the popularity baseline: standard error over users"
    ),
    "item_mean_recall_at_10": MetricName("recall at 10, mean-rating baseline"),
    "item_mean_recall_at_10_error": MetricName("recall at 10, mean-rating baseline: standard error over users"),
    "item_mean_ndcg_at_10": MetricName("nDCG at 10, mean-rating baseline"),
    "item_mean_ndcg_at_10_error": MetricName("nDCG at 10, mean-rating baseline: standard error over users"),
    "ndcg_at_10_over_item_mean": MetricName("nDCG at 10 above the mean-rating baseline"),
    "ndcg_at_10_over_item_mean_error": MetricName(
        "nDCG at 10 above the mean-rating baseline: standard error over users"
    ),
    "num_users": MetricName("evaluated users"),
    "cold_start_share": MetricName("share of likes without a history"),
    "mse": MetricName("mean squared error"),
    "tokens": MetricName("tokens seen", "tokens"),
    "lr": MetricName("learning rate"),
    "grad_norm": MetricName("gradient norm"),
    "skipped_steps": MetricName("skipped steps so far", "steps"),
    "loss_scale": MetricName("loss scale"),
    "overflow_steps": MetricName("steps skipped after an overflow", "steps"),
    "mask_rate": MetricName("mask rate"),
    "tokens_per_second": MetricName("throughput", "tokens/s"),
    "data_wait_seconds": MetricName("waiting for data", "s"),
    "checkpoint_stall_seconds": MetricName("waiting for checkpoints", "s"),
    "checkpoint_seconds": MetricName("writing checkpoints, background included", "s"),
    "validation_seconds": MetricName("validation", "s"),
    "probe_seconds": MetricName("scoring probes", "s"),
    "wall_seconds": MetricName("wall time", "s"),
    "packing_efficiency": MetricName("packing efficiency"),
    "micro_batches": MetricName("micro-batches per rank"),
    "memory_bytes": MetricName("peak memory of rank 0", "bytes"),
    "mfu": MetricName("model FLOPs utilisation"),
}


def describe(key: str) -> MetricName:
    """Returns label and unit of a metric key such as `val/macro_f1`. An unknown metric is labelled with its name."""
    last_part = key.rsplit("/", 1)[-1]
    return _LAST_PARTS.get(last_part, MetricName(last_part.replace("_", " ")))


def label_in_run(key: str) -> str:
    """Returns the label with its prefix: "val loss" for `val/loss`, "probe sst2 accuracy" for `probe/sst2/accuracy`."""
    return " ".join([*key.split("/")[:-1], describe(key).label])


def depends_on_clock(key: str) -> bool:
    """Returns True for metrics of perf.jsonl: time, throughput, memory."""
    return key.startswith(PERF_PREFIX)
