"""The augmentation of a config: whether task and weights allow it, and what has to be known before training begins."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from framework.config.weights import starting_values
from framework.data.augmentation.edits import Augmentation, Replace
from framework.data.augmentation.source import AugmentedSource
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.parallelize import materialize
from framework.distributed.processes.agreement import gather, on_first_rank
from framework.errors import CheckpointError, ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.word_samples import sample_words
from framework.published.pretrained import PretrainedWeights, match_parameters
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.task import Task, TaskModel

SAMPLES_FILE = "augmentation.npy"


def augmented(
    sources: Mapping[str, SequenceSource], augmentation: Augmentation, task: Task, tokenizer: Tokenizer, seed: int
) -> dict[str, SequenceSource]:
    """The sources with an augmented training split.

    Raises:
        ConfigError: What the task predicts would not fit changed texts.
    """
    train = sources["train"]
    if not task.allows_augmentation or not isinstance(train, FlatSource):
        raise ConfigError(
            f"augmentation={type(augmentation).__name__} changes tokens, but {type(task).__name__} predicts what would "
            "no longer fit them; use augmentation=none, or a task on whole texts such as sequence_classification."
        )
    return {**sources, "train": AugmentedSource(train, augmentation, tokenizer, seed)}


def check_word_samples(augmentation: Augmentation, weights: PretrainedWeights | None, config: EncoderConfig) -> None:
    """Words are sampled by a head for masked words, which the weights must bring.

    Raises:
        ConfigError: They do not.
    """
    if not isinstance(augmentation, Replace):
        return
    if weights is None:
        raise ConfigError(
            "augmentation=replace samples words from the weights that the run starts from, but `init_from` is null; "
            "give a pre-trained model, or use augmentation=delete."
        )
    _, new = match_parameters(_masked_word_model(config), weights)
    missing = [name for name in new if name.startswith("head.")]
    if missing:
        raise ConfigError(
            f"augmentation=replace samples words from a head for masked words, but init_from={weights.source} has "
            f"none (it lacks {missing[0].removeprefix('head.')}); start from a pre-trained run or model that has it, "
            "or use augmentation=delete."
        )


def prepare_word_samples(
    source: SequenceSource,
    weights: PretrainedWeights | None,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
) -> None:
    """Samples the words that a training split needs, or reads those of the run's earlier start from its folder.

    Does nothing for other augmentations. Collective: all ranks must call. Costs `num_variants` forward passes over the
    split in fp32, shared by the ranks, and on each of them the whole model, which is gone before training begins.

    Args:
        source: The training split.
        weights: Where the run starts.
        config: Of the encoder.
        tokenizer: Of the run.
        folder: Of the run; keeps the words, so that a run goes on with them whatever became of the weights.
        device: Of this process.

    Raises:
        CheckpointError: The file of the earlier start does not belong to the split.
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
            temporary = file.with_name(SAMPLES_FILE + ".tmp")
            with temporary.open("wb") as stream:
                np.save(stream, samples)
            temporary.rename(file)

        on_first_rank(write)
    whole = source.source.tokens(np.arange(len(source)))
    if samples.shape != (augmentation.num_variants, len(whole.token_indices)):
        raise CheckpointError(
            f"{file} holds words for {samples.shape[-1]} tokens in {len(samples)} variants, but the training split has "
            f"{len(whole.token_indices)} tokens and augmentation.num_variants={augmentation.num_variants}; "
            "remove the file."
        )
    augmentation.samples = samples


def _masked_word_model(config: EncoderConfig) -> TaskModel:
    """On the meta device."""
    with torch.device("meta"):
        encoder = TransformerEncoder(config)
        return TaskModel(encoder, build_pretraining_head(encoder, config, nsp=False))
