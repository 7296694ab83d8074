"""Examples of sentence-transformers for model cards, by kind of head."""

from collections.abc import Sequence

from framework.published.kinds import EMBEDDING, LATE_INTERACTION, RERANKING, SPARSE_EMBEDDING

_SEARCH = 'queries, documents = ["A question?"], ["A text.", "Another text."]'

LIBRARY_EXAMPLES: dict[str, tuple[str, str, Sequence[str]]] = {
    EMBEDDING.name: (
        "Compute embeddings with sentence-transformers:",
        "SentenceTransformer",
        ('embeddings = model.encode(["A text.", "Another text."])',),
    ),
    RERANKING.name: (
        "Score documents with sentence-transformers. A higher score means a more relevant document:",
        "CrossEncoder",
        ('scores = model.predict([("A query", "A document."), ("A query", "Another.")])',),
    ),
    SPARSE_EMBEDDING.name: (
        "Compute scores with sentence-transformers from version 5 on:",
        "SparseEncoder",
        (_SEARCH, "scores = model.similarity(model.encode_query(queries), model.encode_document(documents))"),
    ),
    LATE_INTERACTION.name: (
        "Compute scores with sentence-transformers from version 6 on. `pylate.models.ColBERT` loads the folder too:",
        "MultiVectorEncoder",
        (_SEARCH, "scores = model.similarity(model.encode_query(queries), model.encode_document(documents))"),
    ),
}
"""Title, class of the library, and lines that use a `model` of this class."""
