"""Settings of `framework.mine`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from framework.config.command_schema import InferenceConfig
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError
from framework.retrieval.negatives import Rules

_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class MineConfig(InferenceConfig, Rules):
    """Settings of `framework.mine`, among them the rules by which negatives are chosen (`Rules`).

    Attributes:
        queries: Table of queries with a positive each; BEIR folder, whose `qrels/train.tsv` is read; or file of
            judgments in one.
        documents: Table of documents, or BEIR folder; None: those of the BEIR folder, or the positives.
        query_column: Column of the query.
        positive_column: Column of the positive.
        document_column: Column of the document.
        format: Format of the tables; None: the defaults of TableFormat.
        on_bad_row: Handling of rows that are broken or empty: "error" stops, "skip" drops and counts them.
        output: File to write, JSONL or Parquet by its suffix.
        index: "exact" compares each query with all documents; "faiss" with those of the nearest cells (extra `faiss`).
        reranker: Run or export with task=reranking, whose scores replace the cosines; None: cosines.
        scores: Add the scores of the positive and of each negative to the rows.
        vectors: Folder that keeps the encoded texts for later commands; None: a folder beside the output, which is
            deleted at the end.
    """

    queries: str
    documents: str | None = None
    query_column: str = "text"
    positive_column: str = "pair"
    document_column: str = "text"
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    output: str
    index: Literal["exact", "faiss"] = "exact"
    reranker: str | None = None
    scores: bool = False
    vectors: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Rules.__post_init__(self)
        for name in ("queries", "documents", "output", "vectors"):
            if getattr(self, name) == "":
                raise ConfigError(f"`{name}` is empty. It must be a path. Set it, for example {name}=PATH.")
        if Path(self.output).suffix.lower() not in _SUFFIXES:
            raise ConfigError(
                f"output={self.output} has the suffix {Path(self.output).suffix or '(none)'}. Rows with lists are "
                "written as JSONL or Parquet. Choose a name that ends in .jsonl or .parquet."
            )
