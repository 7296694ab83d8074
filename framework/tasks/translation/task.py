"""Machine translation: the encoder with a transformer decoder on top (Rothe et al. 2020, arXiv:1907.12461)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import with_facts
from framework.data.layout import SHORTEST, check_max_length
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_fraction
from framework.models.config import EncoderConfig
from framework.models.decoder import DecoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import cross_entropy_and_uniform_sum
from framework.tasks.examination import Examination, ExaminedRow, ItemResults
from framework.tasks.task import Task
from framework.tasks.translation.data import ParallelTextData
from framework.tasks.translation.decode import (
    BLEU_TOKENS,
    DecodedTarget,
    bleu_tokens_of,
    check_bleu_tokens,
    corpus_scores,
    decode_targets,
    sentence_scores,
)
from framework.tasks.translation.features import TranslationSource, translation_source
from framework.tasks.translation.head import build_translation_head
from framework.tasks.translation.search import SearchSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


class TranslationTask(Task):
    """Machine translation between two languages that share one tokenizer.

    Args:
        decoder: Decoder settings: layers, maximum target length, and weights shared with the encoder.
        search: Settings of the beam search in evaluation and prediction.
        max_source_length: Maximum number of tokens of a source, special tokens included.
        too_long: Handling of training pairs with a text that is too long: "truncate" cuts the ends of its texts,
            "skip" drops the pair. Evaluation and prediction always truncate, so that all models see the same pairs.
        label_smoothing: Weight, in [0, 1), of the uniform distribution over the vocabulary in the training loss
            (Szegedy et al. 2016, arXiv:1512.00567, section 7).
        bleu_tokens: Tokenization of BLEU, one of `BLEU_TOKENS`. None: the language of the references decides
            (`bleu_tokens_of`).

    Raises:
        ConfigError: A length or `label_smoothing` is out of range, the tokenization is unknown, or the search allows
            longer targets than the decoder.
    """

    best_metric = "bleu"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "translation"
    fields = ("text",)
    scores_predictions = True
    changeable_keys = ("search", "bleu_tokens")
    allows_tensor_parallel = False

    def __init__(
        self,
        decoder: DecoderConfig,
        search: SearchSettings,
        max_source_length: int = 128,
        too_long: Literal["truncate", "skip"] = "truncate",
        label_smoothing: float = 0.1,
        bleu_tokens: str | None = None,
    ) -> None:
        check_max_length("task.max_source_length", max_source_length, SHORTEST)
        check_fraction("task.label_smoothing", label_smoothing)
        if search.max_length > decoder.max_length:
            raise ConfigError(
                f"search.max_length is {search.max_length}, but decoder.max_length={decoder.max_length}. The decoder "
                "limits the length of a target. Lower search.max_length or raise decoder.max_length."
            )
        if bleu_tokens not in (None, *BLEU_TOKENS):
            raise ConfigError(
                f"task.bleu_tokens is {bleu_tokens!r}, which is unknown. Choose one of {', '.join(BLEU_TOKENS)}, or "
                "null to select by the language of the references."
            )
        self.bleu_tokens = bleu_tokens
        self.decoder = decoder
        self.search = search
        self.max_source_length = max_source_length
        self.skips_long = too_long == "skip"
        self.loss_weights = {"translation": 1.0 - label_smoothing}
        if label_smoothing:
            self.loss_weights["smoothing"] = label_smoothing
        self.start_id: int | None = None
        self.end_id: int | None = None

    def build_sources(self, data: ParallelTextData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the pairs of each split.

        Raises:
            ConfigError: sacrebleu, which computes the scores, or a library that it needs for `bleu_tokens`, is not
                installed.
        """
        if importlib.util.find_spec("sacrebleu") is None:
            raise ConfigError(
                "sacrebleu is not installed. It computes the scores of translations. Install it with "
                "`pip install -e '.[translation]'`."
            )
        check_bleu_tokens(self.bleu_tokens or "13a")
        self.start_id, self.end_id = tokenizer.cls_id, tokenizer.sep_id
        sources: dict[str, SequenceSource] = {}
        read = data.with_masks(tokenizer).load()
        for split, pairs in read.splits.items():
            texts, translations = [pair.source for pair in pairs], [pair.target for pair in pairs]
            source = self._source(texts, translations, tokenizer, self.skips_long and split == "train")
            facts, own = read.facts[split], source.facts
            notes = {"tokens for BLEU": self.bleu_tokens or bleu_tokens_of(translations)} if split != "train" else {}
            facts = replace(facts, rows=own.rows, left_out={**facts.left_out, **own.left_out}, notes=notes)
            sources[split] = with_facts(source, facts)
        return sources

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> TranslationSource:
        """Builds one sequence per row, without a target."""
        return self._source([row.values["text"] for row in rows], None, tokenizer, False)

    def _source(
        self, texts: Sequence[str], translations: Sequence[str] | None, tokenizer: Tokenizer, skips_long: bool
    ) -> TranslationSource:
        terms = list(self.loss_weights)
        longest = self.decoder.max_length
        return translation_source(texts, translations, tokenizer, self.max_source_length, longest, terms, skips_long)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the decoder and its output layer."""
        assert self.start_id is not None
        assert self.end_id is not None
        return build_translation_head(encoder, config, self.decoder, self.start_id, self.end_id, self.search)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Sums cross-entropy with labels (`translation`) and with uniform labels (`smoothing`) over target tokens."""
        assert batch.decoder_inputs is not None
        labels = batch.decoder_inputs.targets["labels"]
        translation, smoothing = cross_entropy_and_uniform_sum(outputs["logits"], labels)
        return {"translation": translation, "smoothing": smoothing}

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Returns weights without smoothing, so that `val/loss` is the logarithm of the perplexity."""
        return {"translation": 1.0}

    def build_metrics(self) -> dict[str, Metric]:
        """Returns the perplexity of the references."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from torchmetrics.text import Perplexity

        return {"perplexity": Perplexity(ignore_index=IGNORE_INDEX)}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Updates the perplexity with one micro-batch."""
        assert batch.decoder_inputs is not None
        # Perplexity expects (batch, seq, vocab) and computes in the dtype of the logits.
        metrics["perplexity"].update(outputs["logits"].float()[None], batch.decoder_inputs.targets["labels"][None])

    def to_record(self) -> dict[str, Any]:
        """Returns the ids of the tokens that begin and end targets."""
        return {"start_id": self.start_id, "end_id": self.end_id}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the ids of an earlier run."""
        self.start_id, self.end_id = int(record["start_id"]), int(record["end_id"])

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[DecodedTarget]:
        """Returns the best target of each sequence."""
        real = slice(batch.num_sequences)
        return decode_targets(outputs["tokens"][real], outputs["scores"][real])

    def assemble(self, source: TranslationSource, decoded: Sequence[DecodedTarget]) -> list[dict[str, Any]]:
        """Returns the translation of each row and its score, the length-normalized log-probability of the search."""
        texts = _texts(source, decoded)
        return [{"translation": text, "score": target.score} for text, target in zip(texts, decoded, strict=True)]

    def score(self, source: TranslationSource, decoded: Sequence[DecodedTarget]) -> dict[str, float]:
        """Returns `bleu` and `chrf` in [0, 100], see `corpus_scores`. Both compare texts with natural spacing."""
        tokens = self.bleu_tokens or bleu_tokens_of(source.references)
        return corpus_scores(_texts(source, decoded), source.references, tokens)

    def examine(self, source: TranslationSource, results: ItemResults) -> Examination:
        """Builds one row per pair. The score of a row is its chrF."""
        translations = _texts(source, results.decoded)
        columns = (results.lengths.tolist(), sentence_scores(translations, source.references))
        rows = [
            ExaminedRow(length, score=score, expected=reference, predicted=translation, text=text)
            for length, score, reference, translation, text in zip(
                *columns, source.references, translations, source.texts, strict=True
            )
        ]
        return Examination(rows, "chrF of a sentence / 100")


def _texts(source: TranslationSource, decoded: Sequence[DecodedTarget]) -> list[str]:
    return source.tokenizer.decode_batch([target.tokens for target in decoded])
