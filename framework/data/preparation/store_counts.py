"""Counts of a finished store, for its record and its data card: documents by fate, and personal data by kind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from framework.data.canaries import CANARIES, CanarySettings
from framework.data.preparation.corpus import Corpus, Tally
from framework.data.preparation.personal_data import DOCUMENTS
from framework.data.preparation.tokens import Totals
from framework.errors import DataError

_FATES = ("documents", "duplicates", "near_duplicates", "excluded", "empty")


def source_counts(corpus: Corpus, totals: Totals) -> list[dict[str, Any]]:
    """Returns the name of each source and the counts of its documents by fate.

    If personal data is handled, `personal_data` holds the number of finds by kind, and of documents with finds. The
    documents of canaries are the last source.
    """
    sources = []
    for index, (name, tally) in enumerate(zip(corpus.sources, corpus.tallies, strict=True)):
        documents = totals.documents[index]
        source: dict[str, Any] = {"name": name, "documents": documents, **vars(tally)}
        dropped = tally.duplicates + tally.near_duplicates + tally.excluded
        if totals.personal_data:
            source["personal_data"] = totals.personal_data[index]
            if corpus.cleaning.personal_data == "drop":
                dropped += totals.personal_data[index].get(DOCUMENTS, 0)
        # A document without tokens also counts as empty.
        sources.append({**source, "empty": tally.read - documents - dropped})
    if totals.canary_documents:
        number = totals.canary_documents
        sources.append({"name": CANARIES, "documents": number, **vars(Tally(number)), "empty": 0})
    return sources


def total_counts(
    corpus: Corpus, totals: Totals, sources: Sequence[Mapping[str, Any]], vocab_size: int
) -> dict[str, int]:
    """Returns the counts of the whole store, as in `Prepared`.

    Args:
        corpus: Corpus after its last pass.
        totals: Counts of that pass.
        sources: Counts of `source_counts`.
        vocab_size: Size of the vocabulary.

    Raises:
        DataError: No documents remain.
    """
    summed = {name: sum(source[name] for source in sources) for name in _FATES}
    if sum(totals.documents) == 0:
        num_read = sum(source["read"] for source in sources)
        raise DataError(
            f"no documents remain after cleaning ({num_read:,} read). A store needs at least one. Check the sources "
            "and the settings of cleaning."
        )
    counts = {
        "files": corpus.num_files,
        "bytes": corpus.num_bytes,
        **summed,
        "skipped_rows": corpus.reading.num_skipped,
        "sentences": totals.sentences,
        "tokens": totals.tokens,
        "unknown_tokens": totals.unknown_tokens,
        "vocab_size": vocab_size,
    }
    if totals.personal_data:
        found = _by_kind(totals)
        counts["personal_data_finds"] = sum(found.values()) - found[DOCUMENTS]
        counts["personal_data_documents"] = found[DOCUMENTS]
        if corpus.cleaning.personal_data == "drop":
            counts["personal_data"] = found[DOCUMENTS]
    if totals.canary_documents:
        counts["canary_documents"] = totals.canary_documents
    return counts


def canary_content(settings: CanarySettings | None, totals: Totals) -> dict[str, Any]:
    """Returns the entry `canaries` of a data card: their settings and number of documents; empty without canaries."""
    if settings is None:
        return {}
    return {CANARIES: {**settings.identity(), "documents": totals.canary_documents}}


def personal_data_content(corpus: Corpus, totals: Totals) -> dict[str, Any]:
    """Returns the entry `personal_data` of a data card: the action, documents with finds, and finds by kind.

    Returns:
        The entry by its name; empty without a step for personal data.
    """
    if not totals.personal_data:
        return {}
    found = _by_kind(totals)
    documents = found.pop(DOCUMENTS, 0)
    return {
        "personal_data": {
            "action": corpus.cleaning.personal_data,
            "documents": documents,
            "finds": dict(sorted(found.items())),
        }
    }


def _by_kind(totals: Totals) -> Counter[str]:
    return sum((Counter(counts) for counts in totals.personal_data), Counter())
