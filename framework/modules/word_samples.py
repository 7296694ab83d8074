"""Samples replacement words from a masked language model for all texts, before training starts."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from framework.data.augmentation.edits import Replace, chosen_tokens, draws_of
from framework.data.augmentation.source import AugmentedSource
from framework.data.planning.collate import shape_on
from framework.data.planning.plan import StepPlan
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import gather
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.position import begin_activity
from framework.tasks.task import TaskModel

_TOKENS_AT_ONCE = 4096
_ITEMS_AT_ONCE = 1024
_WORD = -3
"""Counter of these draws under a sequence's key (`framework.data.augmentation.edits`)."""


def sample_words(
    model: TaskModel, source: AugmentedSource, augmentation: Replace, tokenizer: Tokenizer, device: torch.device
) -> np.ndarray:
    """Masks the chosen tokens of each text and samples replacements. Collective: all ranks must call.

    A token that begins a word is replaced by one that begins a word, and a continuation by a continuation. The packing
    of the texts does not depend on the number of ranks, which take micro-batches in turn, so neither do the samples.

    Args:
        model: Encoder and head for masked words with their weights, unsharded on each rank's device, in fp32.
        source: The training split.
        augmentation: Augmentation of the split.
        tokenizer: Tokenizer of the model.
        device: Device of the model.

    Returns:
        (variants, tokens) int32 ids of all tokens of the source; tokens that were not chosen are unchanged.
    """
    info = process_info()
    texts = source.source
    shapes = shape_on(device.type)
    plan = StepPlan(texts, 0, _ITEMS_AT_ONCE, max(_TOKENS_AT_ONCE, texts.max_length), shuffle=False, shapes=shapes)
    allowed = _allowed(tokenizer, model.encoder.config.vocab_size).to(device)
    starts_word = torch.from_numpy(tokenizer.starts_word).long()
    sampled: list[tuple[int, np.ndarray, np.ndarray]] = []
    shares = [share for step in range(len(plan)) for share in plan.micro_batches(step, 0)]
    for variant in range(augmentation.num_variants):
        for number, share in enumerate(shares):
            begin_activity(f"samples words, variant {variant + 1}")
            if number % info.world_size != info.rank:
                continue
            tokens = texts.tokens(share.indices)
            keys = source.keys(np.full(len(share.indices), variant), share.indices, tokens)
            chosen = np.flatnonzero(chosen_tokens(tokens.lengths, source.is_editable(tokens), keys, augmentation.rate))
            if not len(chosen):
                continue
            hidden = tokens.input_ids.copy()
            hidden[chosen] = tokenizer.mask_id
            batch = texts.pack(share, replace(tokens, input_ids=hidden), share.shape)
            batch = replace(batch, targets={"mlm_positions": torch.from_numpy(chosen)}).to(device)
            with torch.inference_mode():
                logits = model(batch)["mlm"].float() / augmentation.temperature
                kinds = starts_word[torch.from_numpy(tokens.input_ids[chosen]).long()].to(device)
                logits = logits.masked_fill(~allowed[kinds], -torch.inf)
                draws = torch.from_numpy(draws_of(tokens.lengths, keys, _WORD)[chosen]).to(device)
                words = sample(logits, draws).cpu().numpy()
            sampled.append((variant, tokens.token_indices[chosen], words.astype(np.int32)))
    input_ids = texts.tokens(np.arange(len(texts))).input_ids
    samples = np.tile(input_ids, (augmentation.num_variants, 1))
    for of_rank in gather(sampled):
        for variant, indices, words in of_rank:
            samples[variant, indices] = words
    return samples


def sample(logits: Tensor, draws: Tensor) -> Tensor:
    """Samples one word per target from the softmax of the logits, by inversion of its cumulative distribution.

    Args:
        logits: (targets, vocab).
        draws: (targets,) float64 in [0, 1).

    Returns:
        (targets,) int64 ids.
    """
    ends = logits.softmax(dim=-1).double().cumsum(dim=-1)
    return torch.searchsorted(ends, (draws * ends[:, -1]).unsqueeze(1), right=True).squeeze(1)


def _allowed(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """Returns (2, vocab) bool: row 0 is True for tokens that continue a word, row 1 for tokens that begin one."""
    allowed = torch.zeros(2, vocab_size, dtype=torch.bool)
    ids = torch.from_numpy(tokenizer.ordinary_ids)
    allowed[torch.from_numpy(tokenizer.starts_word)[ids].long(), ids] = True
    return allowed
