"""Error analysis of retrieval: pairs whose caption or picture is not found first, and the best and worst searches."""

from collections.abc import Mapping, Sequence

import numpy as np

from framework.data.reading.images import PictureFile
from framework.tasks.examination import Examination, ExaminedRow, Gallery, ItemResults
from framework.tasks.image_text.features import PairIds
from framework.tasks.image_text.scores import NUM_SHOWN, Retrieval

_NUM_BEST, _NUM_WORST = 5, 10

_Cells = Mapping[int, str | PictureFile]


def examine_retrieval(records: Sequence[PairIds], results: ItemResults) -> Examination:
    """Builds one row per pair, and tables of the best and worst searches in both directions.

    The score of a pair is the mean reciprocal rank of both directions.

    Args:
        records: Ids of each pair.
        results: Model results for the pairs.
    """
    retrieval = Retrieval(results.decoded, records)
    captions: _Cells = {record.caption: record.row.caption for record in records}
    pictures: _Cells = {record.picture: record.row.picture for record in records}
    rows = []
    for record, length in zip(records, results.lengths.tolist(), strict=True):
        ranks = retrieval.ranks["caption"][record.picture], retrieval.ranks["picture"][record.caption]
        rows.append(
            ExaminedRow(
                length,
                score=float((1.0 / ranks[0] + 1.0 / ranks[1]) / 2.0),
                expected=record.row.caption,
                predicted=f"{captions[int(retrieval.top['caption'][record.picture][0])]} (right caption at rank "
                f"{ranks[0]:,}, right picture at rank {ranks[1]:,})",
                text=record.row.picture.name,
                location=record.row.location,
            )
        )
    answers = {"caption": {each.picture: each.caption for each in records[::-1]}}
    answers["picture"] = {each.caption: each.picture for each in records[::-1]}
    galleries = [
        *_galleries(retrieval, "caption", pictures, captions, answers["caption"]),
        *_galleries(retrieval, "picture", captions, pictures, answers["picture"]),
    ]
    return Examination(rows, "reciprocal rank", galleries=galleries)


def _galleries(
    retrieval: Retrieval, found: str, queries: _Cells, candidates: _Cells, answers: Mapping[int, int]
) -> list[Gallery]:
    """Builds the tables of the worst and of the best searches for candidates of one kind.

    Args:
        retrieval: Search results.
        found: Kind of the candidates, "caption" or "picture".
        queries: Cell of each query id.
        candidates: Cell of each candidate id.
        answers: Id of the first right candidate of each query id.
    """
    asked = "picture" if found == "caption" else "caption"
    ranks, top = retrieval.ranks[found], retrieval.top[found]
    order = np.lexsort((-retrieval.similarities[found], ranks))
    header = [asked, f"right {found}", "rank", *(f"found {place}" for place in range(1, NUM_SHOWN + 1))]

    def rows(chosen: np.ndarray) -> list[list[str | PictureFile]]:
        return [
            [
                queries[query],
                candidates[answers[query]],
                f"{ranks[query]:,}",
                *(candidates[each] for each in top[query].tolist()),
                *[""] * (NUM_SHOWN - len(top[query])),
            ]
            for query in chosen.tolist()
        ]

    worst = [query for query in order[::-1][:_NUM_WORST].tolist() if ranks[query] > 1]
    return [
        Gallery(f"The worst searches for a {found}", header, rows(np.array(worst, dtype=np.int64))),
        Gallery(f"The best searches for a {found}", header, rows(order[:_NUM_BEST])),
    ]
