"""The questions and answers of task=embedding, whose texts are queries and documents here."""

from tests.support.tasks.examples.embedding import REFUSED, TEXTS, write, write_refused

__all__ = ["OVERRIDES", "REFUSED", "ROWS", "TEXTS", "write", "write_refused"]

OVERRIDES = [
    *("task=sparse_embedding", "data=text_pairs", "task.max_length=32", "task.flops_warmup_steps=12"),
    *("task.query_flops=1e-2", "task.document_flops=1e-2", "data.negative_columns=[negative]"),
    # At the rate of the other examples, rounding grows by half in each step, to 7e-4 of a gradient norm after 24.
    "optimizer.lr=3e-3",
]
ROWS = [{"text": "where is my card"}, {"text": "price of one loan that i lost"}, {"text": "code"}]
