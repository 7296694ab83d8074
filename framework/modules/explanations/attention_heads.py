"""Reads the attention probabilities of all heads during an ordinary forward pass, when weights are gathered."""

from typing import Any

import torch

from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.modules.explanations.item_passes import ItemPasses, Jobs
from framework.modules.inference import Inference
from framework.nn.attention import SelfAttention
from framework.tasks.explained_split import AttentionHeads


def read_attention(
    inference: Inference, tokenizer: Tokenizer, source: SequenceSource, row: int, item: int
) -> AttentionHeads:
    """Returns the attention probabilities for the first sequence of an item. Collective: all ranks must call.

    Args:
        inference: Model on its device.
        tokenizer: Tokenizer of the model.
        source: Source of the item.
        row: Row of the item, for the result.
        item: Index of the item.
    """
    passes = ItemPasses(inference, tokenizer, source)

    def compute(jobs: Jobs) -> tuple[Any, list[Any]]:
        layers: list[Any] = []

        def read(module: SelfAttention, arguments: tuple[Any, ...]) -> None:
            layers.append(module.attention_maps(*arguments)[0].float().cpu().numpy())

        modules = [each for each in passes.model.encoder.modules() if isinstance(each, SelfAttention)]
        handles = [each.register_forward_pre_hook(read) for each in modules]
        try:
            with torch.no_grad(), passes.autocast():
                passes.model(jobs.batch)
        finally:
            for handle in handles:
                handle.remove()
        return jobs.batch.input_ids[: jobs.batch.lengths[0]].cpu().numpy(), layers

    ((_, (ids, layers)),) = passes.run([item], compute)
    return AttentionHeads(row, ids, layers)
