"""Error analysis of retrieval: pairs whose caption or picture is not found first."""

from collections.abc import Sequence

from framework.tasks.examination import Examination, ExaminedRow, ItemResults
from framework.tasks.image_text.features import PairIds
from framework.tasks.image_text.scores import Retrieval


def examine_retrieval(records: Sequence[PairIds], results: ItemResults) -> Examination:
    """Builds one row per pair. Its score is the mean reciprocal rank of both directions.

    Args:
        records: Ids of each pair.
        results: Model results for the pairs.
    """
    retrieval = Retrieval(results.decoded, records)
    captions = {record.caption: record.row.caption for record in records}
    names = {record.picture: record.row.picture.name for record in records}
    rows = []
    for record, length in zip(records, results.lengths.tolist(), strict=True):
        ranks = retrieval.ranks["caption"][record.picture], retrieval.ranks["picture"][record.caption]
        found = captions[retrieval.best["caption"][record.picture]], names[retrieval.best["picture"][record.caption]]
        rows.append(
            ExaminedRow(
                length,
                score=float((1.0 / ranks[0] + 1.0 / ranks[1]) / 2.0),
                expected=record.row.caption,
                predicted=f"{found[0]} (right caption at rank {ranks[0]:,}); {found[1]} (right picture at rank "
                f"{ranks[1]:,})",
                text=record.row.picture.name,
                location=record.row.location,
            )
        )
    return Examination(rows, "reciprocal rank")
