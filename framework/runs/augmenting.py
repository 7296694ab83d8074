"""Augmentation of the training split: checks task and weights, and samples replacement words before training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from framework.config.nodes import Component
from framework.config.resolvers import conf_folder
from framework.data.augmentation.edits import Augmentation, Replace
from framework.data.augmentation.rewriting import RewrittenSource, TextAugmentation
from framework.data.augmentation.source import AugmentedSource
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.materialization import materialize
from framework.distributed.processes.agreement import gather, on_first_rank
from framework.errors import CheckpointError, ConfigError
from framework.files import replacing
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.word_samples import sample_words
from framework.published.pretrained import PretrainedWeights, match_parameters
from framework.runs.weights import starting_values
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.task import Task, TaskModel

SAMPLES_FILE = "augmentation.npy"


def build_augmentation(settings: Component | None, task: Task) -> Augmentation | TextAugmentation | None:
    """Builds the augmentation and prepares the task for it, before the data is read; None: no augmentation.

    Raises:
        ConfigError: The targets of the task would no longer fit the changed texts, or the augmentation rejects its
            settings or files.
    """
    if settings is None:
        return None
    augmentation = settings.build(pairs_folder=conf_folder() / "augmentation" / "pairs")
    if not task.allows_augmentation:
        raise _unfit(augmentation, task)
    task.keeps_texts = isinstance(augmentation, TextAugmentation)
    return augmentation


def augmented(
    sources: Mapping[str, SequenceSource],
    augmentation: Augmentation | TextAugmentation,
    task: Task,
    tokenizer: Tokenizer,
    seed: int,
) -> dict[str, SequenceSource]:
    """Returns the sources with an augmented training split.

    Raises:
        ConfigError: The task has no FlatSource, or none with the texts that the augmentation needs; or the
            augmentation would change no text.
    """
    train = sources["train"]
    if not isinstance(train, FlatSource):
        raise _unfit(augmentation, task)
    if not isinstance(augmentation, TextAugmentation):
        return {**sources, "train": AugmentedSource(train, augmentation, tokenizer, seed)}
    if train.texts is None:
        raise ConfigError(
            f"augmentation={type(augmentation).__name__} rewrites texts, but {type(task).__name__} keeps none. The "
            "task must pass `keeps_texts` to `lay_out`. Use an augmentation of tokens, such as augmentation=delete."
        )
    return {**sources, "train": RewrittenSource(train, augmentation, tokenizer, seed)}


def _unfit(augmentation: Augmentation | TextAugmentation, task: Task) -> ConfigError:
    return ConfigError(
        f"augmentation={type(augmentation).__name__} changes texts, but the targets of {type(task).__name__} "
        "would no longer fit them. Augmentation requires a task on whole texts, such as sequence_classification. "
        "Use augmentation=none."
    )


def check_word_samples(
    augmentation: Augmentation | TextAugmentation, weights: PretrainedWeights | None, config: EncoderConfig
) -> None:
    """Checks that the starting weights have a head for masked words, which samples the replacement words.

    Raises:
        ConfigError: The augmentation replaces words, and the weights are fresh or have no such head.
    """
    if not isinstance(augmentation, Replace):
        return
    if weights is None:
        raise ConfigError(
            "augmentation=replace samples words from the starting weights, but `init_from` is null. Set `init_from` "
            "to a pre-trained model, or use augmentation=delete."
        )
    _, new = match_parameters(_masked_word_model(config), weights)
    missing = [name for name in new if name.startswith("head.")]
    if missing:
        raise ConfigError(
            f"augmentation=replace samples words from a head for masked words, but init_from={weights.source} has "
            f"none (it lacks {missing[0].removeprefix('head.')}). Start from a pre-trained run or model that has this "
            "head, or use augmentation=delete."
        )


def prepare_word_samples(
    source: SequenceSource,
    weights: PretrainedWeights | None,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
) -> None:
    """Samples the replacement words of a training split, or reads those that an earlier start of the run saved.

    Collective: all ranks must call. Does nothing for augmentations that do not replace words.

    Sampling costs `num_variants` forward passes over the split in fp32, which the ranks share. Each rank holds the
    whole model in memory for this time and frees it before training begins.

    Args:
        source: Training split.
        weights: Starting weights of the run.
        config: Encoder configuration.
        tokenizer: Tokenizer of the run.
        folder: Run folder. It keeps the words, so that a resumed run does not depend on the files of the weights.
        device: Device of this process.

    Raises:
        CheckpointError: The file of an earlier start does not fit the split.
    """
    if not isinstance(source, AugmentedSource) or not isinstance(source.augmentation, Replace):
        return
    augmentation, file = source.augmentation, folder / SAMPLES_FILE
    if all(gather(file.is_file())):
        samples = np.load(file)
    else:
        model = _masked_word_model(config)
        materialize(model, starting_values(weights, config, seed=0)(model), device)
        samples = sample_words(model, source, augmentation, tokenizer, device)

        def write() -> None:
            with replacing(file) as stream:
                np.save(stream, samples)

        on_first_rank(write)
    tokens = source.source.tokens(np.arange(len(source)))
    if samples.shape != (augmentation.num_variants, len(tokens.token_indices)):
        raise CheckpointError(
            f"{file} holds words for {samples.shape[-1]} tokens in {len(samples)} variants, but the training split has "
            f"{len(tokens.token_indices)} tokens and augmentation.num_variants is {augmentation.num_variants}. "
            "Delete the file, and the next start samples the words again."
        )
    augmentation.samples = samples


def _masked_word_model(config: EncoderConfig) -> TaskModel:
    """Builds an encoder with a head for masked words on the meta device."""
    with torch.device("meta"):
        encoder = TransformerEncoder(config)
        return TaskModel(encoder, build_pretraining_head(encoder, config, nsp=False))
