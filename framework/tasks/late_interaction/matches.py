"""Explains MaxSim: the document token that each token of a query matches, with their similarity."""

from collections.abc import Mapping, Sequence

import numpy as np

from framework.batch import PackedBatch
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.explanation import ExactExplanation, TextSpan, TokenSpans
from framework.tasks.late_interaction.layout import IS_SCORED, SidedLayout


def explain_matches(
    batch: PackedBatch,
    vectors: Sequence[np.ndarray],
    texts: Mapping[str, str],
    sides: SidedLayout,
    tokenizer: Tokenizer,
) -> ExactExplanation:
    """Explains the score of a query and a document. The similarities of the query's tokens sum to it.

    Args:
        batch: Item of the pair.
        vectors: (tokens, width) vectors of the scored tokens of the query, and of the document.
        texts: Query and document, by field.
        sides: Layout of both.
        tokenizer: Tokenizer of the model.

    Returns:
        The explanation, with a row of `matches` for each scored token of the query. A token of the query has its
        similarity as score, and a token of the document the sum of the similarities of its matches.
    """
    ids, lengths = batch.input_ids.numpy(), batch.lengths[:2]
    scored = np.flatnonzero(batch.targets[IS_SCORED].numpy()[: sum(lengths)])
    query_tokens, document_tokens = scored[scored < lengths[0]], scored[scored >= lengths[0]]
    spans: dict[int, TextSpan] = {}
    cut = []
    for side, (field, text), begin in zip((sides.query, sides.document), texts.items(), (0, lengths[0]), strict=True):
        own, rest = side.locate(field, text, tokenizer)
        spans |= {begin + place: span for place, span in own.items()}
        cut += rest
    products = vectors[0].astype(np.float64) @ vectors[1].astype(np.float64).T
    best = products.argmax(axis=1)
    similarities = products[np.arange(len(best)), best]
    token_scores = np.zeros(len(ids))
    token_scores[query_tokens] = similarities
    np.add.at(token_scores, document_tokens[best], similarities)
    names = [tokenizer.backend.id_to_token(int(each)) for each in ids]
    matches = [
        {
            "token": names[token],
            **_offsets("", spans.get(int(token))),
            "document_token": names[document_tokens[match]],
            **_offsets("document_", spans.get(int(document_tokens[match]))),
            "similarity": float(similarity),
        }
        for token, match, similarity in zip(query_tokens, best, similarities, strict=True)
    ]
    located = TokenSpans(texts, spans, range(len(ids)), cut)
    return ExactExplanation(ids, token_scores, float(similarities.sum()), located, {"matches": matches})


def _offsets(prefix: str, span: TextSpan | None) -> dict[str, int | None]:
    return {f"{prefix}start": span and span.start, f"{prefix}end": span and span.end}
