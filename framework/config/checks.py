"""Rules that hold between parts of a config. Each raises one error that names the keys, their values and the remedy."""

from collections.abc import Mapping
from pathlib import Path

from framework.config.schema import TrainConfig
from framework.data.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import mesh_shape
from framework.errors import ConfigError
from framework.models.config import EncoderConfig


def check_settings(settings: TrainConfig, world_size: int) -> None:
    """Checks what needs no file: the strategy, and the model's own rules.

    Raises:
        ConfigError: Two values cannot go together.
    """
    mesh_shape(settings.strategy.name, world_size)
    arguments = dict(settings.model.arguments)
    if {
        "family",
        "hidden_size",
        "num_layers",
        "num_heads",
        "intermediate_size",
        "max_position_embeddings",
    } <= arguments.keys():
        settings.model.build(vocab_size=1)
    elif settings.init_from is None:
        raise ConfigError(
            "`model` leaves its shape to the weights, but `init_from` is null; choose a `model`, or give `init_from`."
        )
    if settings.tokenizer.path is None and settings.tokenizer.fallback is None and settings.init_from is None:
        raise ConfigError("`tokenizer.path` is null and `init_from` too, so there is no tokenizer; give one of them.")
    if settings.run.resume not in ("auto", "never") and not Path(settings.run.resume).is_dir():
        raise ConfigError(
            f"`run.resume` is {settings.run.resume!r}, which is no folder; use auto, never, or the path of a run or "
            "checkpoint."
        )


def check_vocabulary(tokenizer: Tokenizer, config: EncoderConfig) -> None:
    """Every id must have an embedding (spare rows are legal), and a RoBERTa counts positions from the padding id.

    Raises:
        ConfigError: The tokenizer has more ids than the model has rows, or pads with an id from which its RoBERTa does
            not count.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} ids, but "
            f"model.vocab_size={config.vocab_size}; "
            "set model.vocab_size=null to take the tokenizer's, or choose the tokenizer that belongs to the model."
        )
    pad_id = tokenizer.pad_id
    if config.family == "roberta" and not pad_id == config.pad_token_id == config.position_offset - 1:
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} pads with id {pad_id}, but model.pad_token_id={config.pad_token_id} "
            f"and model.position_offset={config.position_offset}, and a RoBERTa counts positions from its padding; set "
            f"model.pad_token_id={pad_id} and model.position_offset={pad_id + 1}, or choose the tokenizer that belongs "
            "to the model."
        )


def check_sequence_lengths(sources: Mapping[str, SequenceSource], config: EncoderConfig) -> None:
    """No sequence may be longer than the positions that the model has.

    Raises:
        ConfigError: One can be.
    """
    for split, source in sources.items():
        if source.max_length > config.max_sequence_length:
            raise ConfigError(
                f"sequences of {split} may have {source.max_length} tokens, but the model has positions for "
                f"{config.max_sequence_length} "
                f"(model.max_position_embeddings={config.max_position_embeddings}); shorten the sequences of the "
                "task, or choose a model with more positions."
            )


def check_enough_sequences(sources: Mapping[str, SequenceSource], world_size: int) -> None:
    """Every rank needs a training sequence.

    Raises:
        ConfigError: There are fewer than ranks.
    """
    count = len(sources["train"])
    if count < world_size:
        raise ConfigError(
            f"there are {count} training sequences for {world_size} ranks; start fewer processes, or give more data."
        )
