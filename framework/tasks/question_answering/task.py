"""Extractive question answering (Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3)."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.answers import require_text
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.written_text import unspaced_share
from framework.errors import check_at_least
from framework.metrics.row_ratio import RowRatio
from framework.metrics.span_f1 import answer_ratios
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import at_least_fp32
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.explanation import Explained, TokenSpans
from framework.tasks.question_answering.data import Question, QuestionData
from framework.tasks.question_answering.decode import WindowSpans, assemble_answers, best_spans
from framework.tasks.question_answering.examine import examine_answers
from framework.tasks.question_answering.explain import explained_answers, locate_window
from framework.tasks.question_answering.features import WindowSizes, window_source
from framework.tasks.question_answering.head import build_question_answering_head
from framework.tasks.task import Task

_UNSPACED_SHARE = 0.25
"""Share of Chinese and Japanese letters in answers above which words are not a useful unit."""


class QuestionAnsweringTask(Task):
    """Extractive question answering: predicts the span of a context that answers a question.

    Args:
        max_length: Maximum number of tokens of a sequence, special tokens included.
        stride: Tokens from the start of a window over a longer context to the start of the next.
        max_question_length: Maximum number of tokens of a question. Longer questions are truncated.
        max_answer_length: Maximum number of tokens of an answer.
        n_best: Number of candidates that a prediction lists. Its probabilities are a softmax over them.
        no_answer_threshold: Predict no answer if the score of [CLS] exceeds that of the best span by more than this
            (SQuAD 2.0). None: every question has an answer (SQuAD 1.1).

    Attributes:
        answer_unit: Unit of the scores, from the data: "words" or "characters".

    Raises:
        ConfigError: A length is below 1, or windows would skip tokens of a context.
    """

    best_metric = "f1"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "question_answering"
    fields = ("question", "context")
    scores_predictions = True
    head_rows: Mapping[str, str] = {"": "tokens"}
    changeable_keys = ("max_answer_length", "n_best", "no_answer_threshold")

    def __init__(
        self,
        max_length: int = 384,
        stride: int = 128,
        max_question_length: int = 64,
        max_answer_length: int = 30,
        n_best: int = 20,
        no_answer_threshold: float | None = None,
    ) -> None:
        positive = {
            "stride": stride,
            "max_question_length": max_question_length,
            "max_answer_length": max_answer_length,
            "n_best": n_best,
        }
        for name, value in positive.items():
            check_at_least(f"task.{name}", value, 1)
        self.sizes = WindowSizes(max_length, stride, max_question_length)
        self.sizes.check()
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        self.no_answer_threshold = no_answer_threshold
        self.answer_unit = "words"
        self.loss_weights = {"answer": 1.0}

    def build_sources(self, data: QuestionData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the questions of each split, and takes the unit of the scores from the data."""
        self.answer_unit = data.answer_unit
        read = data.with_masks(tokenizer).load()
        return {
            split: with_facts(
                window_source(questions, tokenizer, self.sizes),
                read.facts[split],
                ("with an answer" if question.answers else "without an answer" for question in questions),
                warnings=self._warnings(split, questions),
            )
            for split, questions in read.splits.items()
        }

    def _warnings(self, split: str, questions: Sequence[Question]) -> list[str]:
        warnings = []
        num_unanswered = sum(not question.answers for question in questions)
        if num_unanswered and self.no_answer_threshold is None:
            warnings.append(
                f"{num_unanswered:,} questions of {split} have no answer, but no_answer_threshold is null, so each "
                "gets an answer. Set task.no_answer_threshold=0.0 to predict no answer if its score is higher."
            )
        answers = (answer.text for question in questions for answer in question.answers)
        if split != "train" and self.answer_unit == "words" and unspaced_share(answers) > _UNSPACED_SHARE:
            warnings.append(
                f"Answers of {split} are Chinese or Japanese, but data.answer_unit is words, so a whole answer counts "
                "as one word. Set data.answer_unit=characters."
            )
        return warnings

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that neither the question nor the context is empty."""
        for name in self.fields:
            require_text(row.location, name, row.values[name])

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds the windows of each row, without answers."""
        questions = [Question(row.location, row.values["question"], row.values["context"], ()) for row in rows]
        return window_source(questions, tokenizer, self.sizes, labelled=False)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head of the encoder's model family."""
        return build_question_answering_head(config)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Sums the losses of sequences (`answer`)."""
        return {"answer": self.sequence_losses(outputs, batch).sum()}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns the mean of the cross-entropies of start and end.

        The softmax of each is over all tokens of the sequence, including question and special tokens, as in
        transformers.

        Args:
            outputs: `start_logits` and `end_logits`, each (tokens,).
            batch: Micro-batch with targets.

        Returns:
            (sequences,) fp32; 0 for dummies and for sequences with an unknown answer.
        """
        losses = [
            _token_cross_entropy(outputs[f"{edge}_logits"], batch.targets[f"{edge}_positions"], batch)
            for edge in ("start", "end")
        ]
        return (losses[0] + losses[1]) / 2

    def to_record(self) -> dict[str, Any]:
        """Returns the window sizes, the maximum answer length and the no-answer threshold."""
        return {
            "max_length": self.sizes.max_length,
            "stride": self.sizes.stride,
            "max_question_length": self.sizes.max_question_length,
            "max_answer_length": self.max_answer_length,
            "no_answer_threshold": self.no_answer_threshold,
        }

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[WindowSpans]:
        """Returns the best spans of each window."""
        start_logits = outputs["start_logits"].float().cpu().numpy()
        end_logits = outputs["end_logits"].float().cpu().numpy()
        window_starts = batch.targets["window_starts"][: batch.num_sequences].tolist()
        decoded, begin = [], 0
        for window_start, length in zip(window_starts, batch.lengths, strict=False):
            # [CLS], and the window without the final [SEP].
            rows = [begin, *range(window_start, begin + length - 1)]
            decoded.append(best_spans(start_logits[rows], end_logits[rows], self.max_answer_length, self.n_best))
            begin += length
        return decoded

    def assemble(self, source: FlatSource, decoded: Sequence[WindowSpans]) -> list[dict[str, Any]]:
        """Returns the answer to each question, from all its windows (`assemble_answers`)."""
        return assemble_answers(source.records, decoded, self.n_best, self.no_answer_threshold)

    def explained(self, source: FlatSource, decoded: Sequence[WindowSpans], name: str | None) -> list[list[Explained]]:
        """Returns the score of each answer (`explained_answers`)."""
        return explained_answers(source, decoded, self.assemble(source, decoded))

    def explained_scores(
        self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Returns the sum of the start logit of the first and the end logit of the last token of each answer."""
        tokens = torch.tensor(targets, device=batch.cu_seqlens.device) + batch.cu_seqlens[: len(targets), None].long()
        return outputs["start_logits"].float()[tokens[:, 0]] + outputs["end_logits"].float()[tokens[:, 1]]

    def explained_spans(
        self, source: FlatSource, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens of a window in question and context."""
        return locate_window(source, explained.item, tokenizer)

    def row_metrics(self, source: FlatSource, decoded: Sequence[WindowSpans]) -> dict[str, RowRatio]:
        """Returns exact match and F1 of the SQuAD script (`framework.metrics.span_f1`)."""
        questions = [next(windows).question for _, windows in groupby(source.records, key=lambda window: window.row)]
        predictions = [prediction["answer"] for prediction in self.assemble(source, decoded)]
        truths = [[answer.text for answer in question.answers] for question in questions]
        return answer_ratios(predictions, truths, self.answer_unit)

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds one row per question, see `examine_answers`."""
        return examine_answers(source.records, results, self.assemble(source, results.decoded), self.answer_unit)


def _token_cross_entropy(logits: Tensor, positions: Tensor, batch: PackedBatch) -> Tensor:
    """Returns -log softmax over the tokens of each sequence, at a position of the micro-batch.

    Unlike the hidden states, the few scores are padded to a rectangle. Shapes then do not depend on lengths, and the
    host need not wait for the device.

    Args:
        logits: (tokens,).
        positions: (sequences,) token of the micro-batch, or IGNORE_INDEX.
        batch: Micro-batch.

    Returns:
        (sequences,) fp32; 0 for IGNORE_INDEX.
    """
    starts = batch.cu_seqlens[:-1].long()
    offsets = torch.arange(batch.max_seqlen, device=logits.device)
    inside = offsets < batch.cu_seqlens.diff()[:, None]
    indices = torch.where(inside, starts[:, None] + offsets, 0)
    padded = at_least_fp32(logits)[indices].masked_fill(~inside, -torch.inf)
    labels = torch.where(positions == IGNORE_INDEX, IGNORE_INDEX, positions - starts)
    return nn.functional.cross_entropy(padded, labels, ignore_index=IGNORE_INDEX, reduction="none")
