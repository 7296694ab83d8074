"""Translation head: a decoder with cross-attention to the encoder's hidden states, and an output layer."""

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.models.config import EncoderConfig
from framework.models.decoder import DecoderConfig, TransformerDecoder
from framework.models.encoder import TransformerEncoder
from framework.nn.dropout import decoder_keys
from framework.optim.shards import is_distributed
from framework.tasks.pretraining.head import MaskedLanguageModelHead, TiedDecoder
from framework.tasks.translation.search import ActiveTokens, Hypothesis, SearchSettings, beam_search


class TranslationHead(nn.Module):
    """Decoder and vocabulary logits. Without gradients, the head also searches for targets.

    Args:
        decoder: Decoder on top of the encoder.
        mlm: Output layer over the vocabulary. It has the name of the pre-training head, so that it can start from the
            pre-trained weights.
        start_id: Id of the first token of every target.
        end_id: Id of the token that ends a target.
        search: Settings of the beam search.
    """

    def __init__(
        self,
        decoder: TransformerDecoder,
        mlm: MaskedLanguageModelHead,
        start_id: int,
        end_id: int,
        search: SearchSettings,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.mlm = mlm
        self.start_id = start_id
        self.end_id = end_id
        self.search = search

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes logits at each token of the given targets. Without gradients, also runs beam search.

        Args:
            hidden_states: (tokens, hidden) of the sources.
            batch: Sources, with `decoder_inputs`.
            dropout_keys: (tokens,) int64. None disables dropout.

        Returns:
            `logits` (target tokens, vocab). Without gradients, as in evaluation and prediction, also the best target of
            each sequence: `tokens` (sequences, longest target) int64, padded with IGNORE_INDEX, with the end token if
            the search produced it; and `scores` (sequences,) fp32 of `beam_search`.
        """
        assert batch.decoder_inputs is not None
        x = self.decoder(batch.decoder_inputs, hidden_states, batch, decoder_keys(dropout_keys, batch))
        outputs = {"logits": self.mlm(x)}
        if not torch.is_grad_enabled():
            best = [hypotheses[0] for hypotheses in self.find_targets(hidden_states, batch)]
            rows = [torch.tensor(hypothesis.tokens) for hypothesis in best]
            tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX)
            outputs["tokens"] = tokens.to(hidden_states.device)
            outputs["scores"] = torch.tensor([hypothesis.score for hypothesis in best]).to(hidden_states.device)
        return outputs

    def find_targets(self, hidden_states: Tensor, batch: PackedBatch) -> list[list[Hypothesis]]:
        """Searches for targets of all sequences of a batch, dummies included (see `beam_search`).

        Collective if the decoder's weights are sharded: all ranks must call. A sharded layer gathers its weights in
        each call, so all ranks must make the same number of calls. The method then always makes `search.max_length`
        decoder calls, even if the search ends earlier.
        """
        growing = _Growing(self, hidden_states, batch)
        hypotheses = beam_search(growing, len(batch.lengths), self.start_id, self.end_id, self.search)
        if any(is_distributed(parameter) for parameter in self.decoder.layers.parameters()):
            idle = ActiveTokens([self.start_id], [0], [1] + [0] * (len(batch.lengths) - 1))
            while growing.num_calls < self.search.max_length:
                growing(idle)
        return hypotheses


class _Growing:
    """Incremental decoder of one micro-batch: scores growing hypotheses with key-value caches."""

    def __init__(self, head: TranslationHead, hidden_states: Tensor, batch: PackedBatch) -> None:
        self.head = head
        self.hidden_states = hidden_states
        self.batch = batch
        self.caches = head.decoder.new_caches()
        self.num_calls = 0

    def __call__(self, active: ActiveTokens) -> Tensor:
        """Appends a token to each hypothesis and returns next-token log-probabilities, (hypotheses, vocab) fp32."""
        device = self.hidden_states.device
        parents = torch.tensor(active.parents, device=device)
        for cache in self.caches:
            cache.select(parents)
        tokens = _pack_last_tokens(active, self.num_calls, self.batch).to(device)
        self.num_calls += 1
        x = self.head.decoder(tokens, self.hidden_states, self.batch, caches=self.caches)
        return self.head.mlm(x).float().log_softmax(dim=-1)


def _pack_last_tokens(active: ActiveTokens, position: int, batch: PackedBatch) -> PackedBatch:
    """Packs the last token of each hypothesis at `position`. The hypotheses of one source form one sequence."""
    input_ids = torch.tensor(active.tokens)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.full_like(input_ids, position),
        token_type_ids=torch.zeros_like(input_ids),
        cu_seqlens=torch.tensor([0, *active.sizes]).cumsum(0).int(),
        sequence_ids=batch.sequence_ids,
        lengths=tuple(active.sizes),
        max_seqlen=max(active.sizes),
        num_sequences=batch.num_sequences,
        num_tokens=len(active.tokens),
        targets={},
        counts={},
    )


def build_translation_head(
    encoder: TransformerEncoder,
    config: EncoderConfig,
    decoder_config: DecoderConfig,
    start_id: int,
    end_id: int,
    search: SearchSettings,
) -> TranslationHead:
    """Builds the decoder and its output layer with the encoder's hidden size.

    Args:
        encoder: Encoder that supplies the word embeddings, if they are shared.
        config: Encoder configuration.
        decoder_config: Settings of the decoder that do not follow from the encoder.
        start_id: Id of the first token of every target.
        end_id: Id of the token that ends a target.
        search: Settings of the beam search.
    """
    decoder = TransformerDecoder(decoder_config, config, encoder.get_parameter("embeddings.word_embeddings.weight"))
    words = decoder.get_parameter("embeddings.word_embeddings.weight")
    output = TiedDecoder(words if decoder_config.tie_output else nn.Parameter(torch.empty_like(words)))
    return TranslationHead(decoder, MaskedLanguageModelHead(config, output), start_id, end_id, search)
