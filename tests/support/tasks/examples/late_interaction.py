"""The questions and answers of task=embedding, whose texts are queries and documents here."""

from tests.support.tasks.examples.embedding import REFUSED, TEXTS, write, write_refused

__all__ = ["OVERRIDES", "REFUSED", "ROWS", "TEXTS", "write", "write_refused"]

OVERRIDES = [
    *("task=late_interaction", "data=text_pairs", "task.width=16", "task.query_length=16", "task.document_length=32"),
    *("task.expand_queries=true", "task.symmetric=true", "data.negative_columns=[negative]", "task.temperature=2.0"),
]
ROWS = [{"text": "where is my card"}, {"text": "price of one loan that i lost"}, {"text": "code"}]
