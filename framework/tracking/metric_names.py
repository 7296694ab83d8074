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
    "r_drop_loss": MetricName("divergence of two passes", "nats"),
    "adversarial_loss": MetricName("adversarial loss", "nats"),
    "classification_loss": MetricName("classification loss", "nats"),
    "translation_loss": MetricName("translation loss", "nats"),
    "smoothing_loss": MetricName("loss to all words alike", "nats"),
    "perplexity": MetricName("perplexity"),
    "bleu": MetricName("BLEU, of 100"),
    "chrf": MetricName("chrF, of 100"),
    "relation_loss": MetricName("relation loss", "nats"),
    "choice_loss": MetricName("choice loss", "nats"),
    "mlm_accuracy": MetricName("masked-word accuracy"),
    "nsp_accuracy": MetricName("next-sentence accuracy"),
    "accuracy": MetricName("accuracy"),
    "macro_f1": MetricName("macro F1"),
    "exact_match": MetricName("exact match"),
    "f1": MetricName("F1"),
    "has_answer_exact_match": MetricName("exact match where there is an answer"),
    "has_answer_f1": MetricName("F1 where there is an answer"),
    "no_answer_exact_match": MetricName("exact match where there is none"),
    "no_answer_f1": MetricName("F1 where there is none"),
    "entity_precision": MetricName("entity precision"),
    "entity_recall": MetricName("entity recall"),
    "entity_f1": MetricName("entity F1"),
    "argmax_entity_f1": MetricName("entity F1 of each word's largest score"),
    "relation_f1": MetricName("macro F1 of relations, directions counted"),
    "token_accuracy": MetricName("token accuracy"),
    "micro_f1": MetricName("micro F1"),
    "matthews": MetricName("Matthews' correlation"),
    "in_scope_accuracy": MetricName("accuracy in scope"),
    "out_of_scope_auroc": MetricName("AUROC of out-of-scope"),
    "pearson": MetricName("Pearson's correlation"),
    "spearman": MetricName("Spearman's correlation"),
    "contrast_loss": MetricName("contrastive loss", "nats"),
    "reverse_contrast_loss": MetricName("contrastive loss from positive to anchor", "nats"),
    "mrr": MetricName("mean reciprocal rank"),
    "hit_rate_at_1": MetricName("queries answered by the first"),
    "hit_rate_at_5": MetricName("queries answered by one of the first 5"),
    "hit_rate_at_10": MetricName("queries answered by one of the first 10"),
    "recall_at_1": MetricName("recall at 1"),
    "recall_at_5": MetricName("recall at 5"),
    "recall_at_10": MetricName("recall at 10"),
    "ndcg_at_10": MetricName("nDCG at 10"),
    "recommendation_loss": MetricName("recommendation loss", "nats"),
    "recall_at_20": MetricName("recall at 20"),
    "recall_at_10_error": MetricName("its standard error over users"),
    "ndcg_at_5": MetricName("nDCG at 5"),
    "ndcg_at_20": MetricName("nDCG at 20"),
    "ndcg_at_10_error": MetricName("its standard error over users"),
    "popularity_recall_at_10": MetricName("recall at 10 by popularity"),
    "popularity_recall_at_10_error": MetricName("its standard error over users"),
    "popularity_ndcg_at_10": MetricName("nDCG at 10 by popularity"),
    "popularity_ndcg_at_10_error": MetricName("its standard error over users"),
    "ndcg_at_10_over_popularity": MetricName("nDCG at 10 more than by popularity"),
    "ndcg_at_10_over_popularity_error": MetricName("its standard error over users"),
    "item_mean_recall_at_10": MetricName("recall at 10 by mean rating"),
    "item_mean_recall_at_10_error": MetricName("its standard error over users"),
    "item_mean_ndcg_at_10": MetricName("nDCG at 10 by mean rating"),
    "item_mean_ndcg_at_10_error": MetricName("its standard error over users"),
    "ndcg_at_10_over_item_mean": MetricName("nDCG at 10 more than by mean rating"),
    "ndcg_at_10_over_item_mean_error": MetricName("its standard error over users"),
    "num_users": MetricName("users who are asked"),
    "cold_start_share": MetricName("likes without a history"),
    "mse": MetricName("mean squared error"),
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
    "probe_seconds": MetricName("scoring probes", "s"),
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


def label_in_run(key: str) -> str:
    """The label with what stands before it: `val/loss` is "val loss", `probe/sst2/accuracy` "probe sst2 accuracy"."""
    return " ".join([*key.split("/")[:-1], describe(key).label])


def depends_on_clock(key: str) -> bool:
    """True for what goes to perf.jsonl: time, throughput, memory."""
    return key.startswith(PERF_PREFIX)
