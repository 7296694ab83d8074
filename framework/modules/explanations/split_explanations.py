"""Explains rows of an evaluated split for its report: the worst rows, and evenly spaced rows that represent it."""

from collections.abc import Sequence

import numpy as np

from framework.data.tokenization.tokenizer import Tokenizer
from framework.modules.evaluation import SplitEvaluation
from framework.modules.explanations.attention_heads import read_attention
from framework.modules.explanations.attribution import Attribution, attribute
from framework.modules.explanations.faithfulness import measure_faithfulness
from framework.modules.explanations.item_passes import word_indices
from framework.modules.inference import Inference
from framework.tasks.explained_split import AttentionHeads, RowExplanation, SplitExplanations
from framework.tasks.explanation import Explained

STEPS = 12
"""Points of integrated gradients. For SST-2 their median completeness error is 3 %, and more points change no rank."""

_MOST_SCORES = 3
"""Largest number of scores of a row that are explained, for example labels of a row with many labels."""

_MOST_FAITHFULNESS_ROWS = 200
_BEST_LENGTHS = range(8, 17)
"""Tokens of a row whose attention can be drawn with readable names."""


def explain_split(
    inference: Inference,
    tokenizer: Tokenizer,
    evaluation: SplitEvaluation,
    shown: Sequence[int],
    num_rows: int,
    shows_texts: bool,
) -> SplitExplanations | str:
    """Explains rows of a split. Collective: all ranks must call. It draws no random numbers.

    Args:
        inference: Model on its device, parallelized or not.
        tokenizer: Tokenizer of the model.
        evaluation: Evaluation of the split with `examines`.
        shown: Rows that the report shows with their texts.
        num_rows: Number of rows that represent the split.
        shows_texts: True if the report shows texts; attention is shown with the tokens of a text.

    Returns:
        The explanations, or the reason for which there are none.
    """
    source = evaluation.source
    chosen = evaluation.task.explained(source, evaluation.decoded, None)
    if len(chosen) != len(evaluation.examine().examination.rows):
        return "The rows of the error analysis are not those of the predictions."
    spaced = np.unique(np.linspace(0, len(chosen) - 1, min(num_rows, len(chosen))).round().astype(int)).tolist()
    scores = {row: chosen[row][:_MOST_SCORES] if row in set(spaced) else chosen[row][:1] for row in {*spaced, *shown}}
    flat = [(row, each) for row in sorted(scores) for each in scores[row]]
    if not flat:
        return "The model predicts nothing in these rows that could be explained."
    results = attribute(inference, tokenizer, source, [each for _, each in flat], steps=STEPS)
    if not all(np.isfinite([each.score, *each.token_scores]).all() for each in results):
        return "The scores of the model are not finite."
    by_row: dict[int, list[tuple[Explained, RowExplanation]]] = {row: [] for row in scores}
    for (row, each), result in zip(flat, results, strict=True):
        by_row[row].append((each, _explanation(row, each.name, result, tokenizer)))
    measured = [first for row in spaced for first in by_row[row][:1] if first[1].words.max(initial=-1) >= 0]
    measured = measured[:: -(-len(measured) // _MOST_FAITHFULNESS_ROWS) or 1]
    faithfulness = None
    if measured:
        explained, explanations = zip(*measured, strict=True)
        items, targets = [each.item for each in explained], [each.target for each in explained]
        faithfulness = measure_faithfulness(inference, tokenizer, source, explanations, items, targets)
    return SplitExplanations(
        labels=evaluation.task.explained_labels,
        steps=STEPS,
        error=float(np.median([each.error for each in results if each.error is not None])),
        num_rows=len(spaced),
        sampled=[explanation for row in spaced for _, explanation in by_row[row]],
        shown=[by_row[row][0][1] if by_row[row] else None for row in shown],
        faithfulness=faithfulness,
        attention=_attention(inference, tokenizer, evaluation, shown or spaced, by_row) if shows_texts else None,
    )


def _explanation(row: int, name: str, result: Attribution, tokenizer: Tokenizer) -> RowExplanation:
    ids = result.input_ids
    words = word_indices(ids, tokenizer)
    return RowExplanation(row, name, result.score, result.baseline_score, ids, result.token_scores, words)


def _attention(
    inference: Inference,
    tokenizer: Tokenizer,
    evaluation: SplitEvaluation,
    rows: Sequence[int],
    by_row: dict[int, list[tuple[Explained, RowExplanation]]],
) -> AttentionHeads | None:
    """Reads the attention for the first row with a good length, else for the shortest row."""
    candidates = [by_row[row][0] for row in rows if by_row[row]]
    if not candidates:
        return None
    good = [each for each in candidates if len(each[1].input_ids) in _BEST_LENGTHS]
    explained, explanation = good[0] if good else min(candidates, key=lambda each: len(each[1].input_ids))
    return read_attention(inference, tokenizer, evaluation.source, explanation.row, explained.item)
