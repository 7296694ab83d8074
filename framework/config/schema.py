"""The fixed parts of a config, one dataclass a group; what may be of several kinds is a `Component` (see nodes.py).

Each dataclass checks what it can see alone; rules between groups stand in checks.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from framework.callbacks.time_limit import TimeLimit
from framework.checkpoint.integrity import Verify
from framework.config.nodes import Component
from framework.data.batch_size import BatchWarmup
from framework.data.preparation.corpus import Cleaning
from framework.distributed.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.errors import ConfigError
from framework.models.config import EncoderConfig

MODEL_METADATA = {"target": EncoderConfig, "supplied": tuple(f.name for f in fields(EncoderConfig))}
"""Keys of the model that are left out come from the weights in `init_from`, the vocabulary size from the tokenizer."""


def _at_least(group: str, node: Any, minimum: float, *names: str) -> None:
    """Raises ConfigError where a value that is given lies below the minimum."""
    for name in names:
        value = getattr(node, name)
        if value is not None and value < minimum:
            raise ConfigError(f"`{group}.{name}` is {value}, but it must be at least {minimum}; raise it.")


@dataclass(frozen=True)
class RunConfig:
    """Which run this is and where it is kept.

    Attributes:
        id: The name of the run folder; null: from SLURM, a torchrun run id, or a hash of the config's identity.
        dir: The folder that holds the run folders.
        resume: "auto": go on from the newest complete checkpoint of the run folder; "never": the run folder must be
            new; else the path of a run folder or of a checkpoint whose weights, optimizer state and step are taken.
        verify: What of the checkpoint's files is compared with what was written: "sizes", or "checksums" too, which
            reads all of them once more; where it is damaged, the one before it is used.
    """

    id: str | None = None
    dir: str = "runs"
    resume: str = "auto"
    verify: Verify = "sizes"


@dataclass(frozen=True)
class TrainerConfig:
    """How long and in what portions.

    Attributes:
        max_steps: Optimizer steps of the whole run; null leaves it to `max_epochs`.
        max_epochs: Epochs of the whole run, where `max_steps` is null.
        global_batch_size: Sequences per optimizer step over all ranks; null leaves it to `global_batch_tokens`.
        micro_batch_tokens: Most tokens that one forward pass of one rank takes.
        global_batch_tokens: Tokens per optimizer step over all ranks, where `global_batch_size` is null: about, since
            the run takes the whole number of sequences that have so many on average.
        batch_warmup_start: Sequences of the first steps, from which the global batch grows linearly; null: no growth.
        batch_warmup_steps: Steps in which the global batch reaches its full size; null: no growth.
        val_every_n_steps: Steps between validations; null: at the end of each epoch of full steps and of the run.
        log_every_n_steps: Steps between logged rows.
        checkpoint_every_n_steps: Steps between checkpoints; null: only at the end.
        keep_last: Newest checkpoints that are kept.
        keep_every_n_steps: Checkpoints at multiples of it are kept forever; null: none are.
        keep_best: Checkpoints with the best validations, by the task's metric, that are kept.
        gradient_clip: Largest global gradient norm; null: gradients are not clipped.
        num_workers: Loader processes of each rank.
        timeout_seconds: How long a rank waits for the others before it gives up.
        max_time: Time within which one start of the run saves and leaves, counted from the start of its process:
            HH:MM:SS, D-HH:MM:SS or seconds; null: no limit.
    """

    max_steps: int | None
    max_epochs: int | None
    global_batch_size: int | None
    micro_batch_tokens: int
    global_batch_tokens: int | None = None
    batch_warmup_start: int | None = None
    batch_warmup_steps: int | None = None
    val_every_n_steps: int | None = None
    log_every_n_steps: int = 10
    checkpoint_every_n_steps: int | None = None
    keep_last: int = 2
    keep_every_n_steps: int | None = None
    keep_best: int = 1
    gradient_clip: float | None = 1.0
    num_workers: int = 0
    timeout_seconds: int = 600
    max_time: str | int | None = None

    @property
    def time_limit(self) -> TimeLimit | None:
        """`max_time` as a length of time; None: no limit.

        Raises:
            ConfigError: It cannot be read as one.
        """
        try:
            return None if self.max_time is None else TimeLimit.parse(self.max_time)
        except ValueError as error:
            raise ConfigError(
                f"`trainer.max_time` cannot be used: {error}; write ten hours as 10:00:00, two days as 2-00:00:00."
            ) from error

    @property
    def batch_warmup(self) -> BatchWarmup | None:
        """How the global batch grows; None: it does not."""
        if self.batch_warmup_start is None or self.batch_warmup_steps is None:
            return None
        return BatchWarmup(self.batch_warmup_start, self.batch_warmup_steps)

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_epochs is None:
            raise ConfigError(
                "`trainer.max_steps` and `trainer.max_epochs` are null, so nothing says how long to train; set one "
                "of them."
            )
        if (self.global_batch_size is None) == (self.global_batch_tokens is None):
            raise ConfigError(
                f"`trainer.global_batch_size` is {self.global_batch_size} and `trainer.global_batch_tokens` is "
                f"{self.global_batch_tokens}, but exactly one of them says how large a step is; set the other to null."
            )
        if (self.batch_warmup_start is None) != (self.batch_warmup_steps is None):
            raise ConfigError(
                f"`trainer.batch_warmup_start` is {self.batch_warmup_start} and `trainer.batch_warmup_steps` is "
                f"{self.batch_warmup_steps}, but a growing batch needs both; set both, or both to null."
            )
        _at_least("trainer", self, 1, "keep_every_n_steps")
        if self.keep_every_n_steps is not None and (
            self.checkpoint_every_n_steps is None or self.keep_every_n_steps % self.checkpoint_every_n_steps
        ):
            raise ConfigError(
                f"`trainer.keep_every_n_steps` is {self.keep_every_n_steps}, but checkpoints are written by "
                f"`trainer.checkpoint_every_n_steps`, which is {self.checkpoint_every_n_steps}; set the first to a "
                "multiple of the second."
            )
        _at_least("trainer", self, 1, "max_steps", "max_epochs", "global_batch_size", "global_batch_tokens")
        _at_least("trainer", self, 1, "micro_batch_tokens", "batch_warmup_start", "batch_warmup_steps")
        _at_least("trainer", self, 1, "log_every_n_steps")
        _at_least("trainer", self, 1, "val_every_n_steps", "checkpoint_every_n_steps", "keep_last", "timeout_seconds")
        _at_least("trainer", self, 0, "num_workers", "gradient_clip", "keep_best")
        _ = self.time_limit  # raises where it cannot be read


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer.

    Attributes:
        path: A folder with tokenizer.json or vocab.txt; null: the tokenizer of `init_from`.
        fallback: The same, where `path` is null and `init_from` is null or brings no tokenizer.
    """

    path: str | None = None
    fallback: str | None = None


@dataclass(frozen=True)
class StrategyConfig:
    """How ranks share the work.

    Attributes:
        name: "single" one process; "ddp" replicated weights; "fsdp2" sharded weights, gradients and optimizer state.
        activation_checkpointing: What layers keep of their forward pass for the backward pass.
    """

    name: Literal["single", "ddp", "fsdp2"]
    activation_checkpointing: ActivationCheckpointing = KEEP_ALL


@dataclass(frozen=True)
class PrecisionConfig:
    """The numbers that products are made of.

    Attributes:
        name: "fp32"; "bf16" for matrix products; "auto": bf16 where the hardware multiplies it natively, else fp32.
    """

    name: Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go beside the run folder.

    Attributes:
        name: "none", or "wandb" (Weights & Biases).
        project: The project on the server.
        group: A group of runs on the server, for example a sweep.
        tags: Words to find the run by.
        mode: "online", "offline", or "auto": online where an API key is configured.
    """

    name: Literal["none", "wandb"]
    project: str = "cloze"
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline"] = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that `framework.train` takes: one field a config group.

    Attributes:
        seed: Decides order, pairs, masks, dropout and fresh weights.
        init_from: Where weights start when nothing is resumed: a run (id or folder), an export, a Hugging Face folder
            or hub name; null: fresh weights from the seed.
    """

    run: RunConfig
    seed: int
    init_from: str | None
    trainer: TrainerConfig
    tokenizer: TokenizerConfig
    strategy: StrategyConfig
    precision: PrecisionConfig
    logger: LoggerConfig
    task: Component
    data: Component
    optimizer: Component
    schedule: Component = field(metadata={"supplied": ("max_steps",)})
    model: Component = field(metadata=MODEL_METADATA)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(Cleaning):
    """The texts of a token store, beside what `Cleaning` does to them.

    Attributes:
        sources: Read in this order, each under a name of its own.
        on_bad_row: What happens at a row that cannot be read: "error" stops, "skip" counts and reports it.
    """

    sources: dict[str, Component]
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class PrepareConfig:
    """Everything that `framework.prepare` takes.

    Attributes:
        store: The folder that is made.
        vocabulary: A tokenizer, or how one is trained on the corpus.
        overwrite: Replace a store that was made from other files or settings.
        num_workers: Processes; null: one for each core that this process may use; 0 or 1: no others.
        stream: Keep no token ids; training reads the texts again from the Parquet shards of the corpus.
    """

    store: str
    corpus: CorpusConfig
    vocabulary: Component
    overwrite: bool = False
    num_workers: int | None = None
    stream: bool = False

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(
                f"`num_workers` is {self.num_workers}, but it must be at least 0; raise it, or give null."
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that `framework.evaluate` takes.

    Attributes:
        run: A run (id or folder), a checkpoint of one, or an export.
        runs: The folder that holds the run folders.
        split: "train", "validation" or "test".
        data: Other data than that of the run; an export needs it.
        micro_batch_tokens: Most tokens of a forward pass.
        output: A JSON file for the metrics; null: they are only printed.
    """

    run: str
    split: Literal["train", "validation", "test"]
    precision: PrecisionConfig
    data: Component | None = None
    runs: str = "runs"
    micro_batch_tokens: int = 8192
    output: str | None = None


@dataclass(frozen=True)
class PredictConfig:
    """Everything that `framework.predict` takes.

    Attributes:
        run: A run (id or folder), a checkpoint of one, or an export.
        runs: The folder that holds the run folders.
        input: A CSV, TSV, JSONL, Parquet or Arrow file; null where `text` is given.
        text: Texts themselves; null where `input` is given.
        text_column: Column, in JSONL key, of the text.
        pair_column: Column of the second text; null for single texts.
        keep_columns: Columns that are copied into the output.
        output: A JSONL file; null: standard output.
        micro_batch_tokens: Most tokens of a forward pass.
    """

    run: str
    precision: PrecisionConfig
    input: str | None = None
    text: str | Sequence[str] | None = None
    runs: str = "runs"
    text_column: str = "text"
    pair_column: str | None = None
    keep_columns: Sequence[str] = ()
    output: str | None = None
    micro_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if (self.input is None) == (self.text is None):
            raise ConfigError(
                f"`input` is {self.input!r} and `text` is {self.text!r}, but exactly one of them says what to predict."
            )


@dataclass(frozen=True)
class ExportConfig:
    """Everything that `framework.export` takes.

    Attributes:
        run: A run (id or folder), or a checkpoint of one.
        runs: The folder that holds the run folders.
        output: The folder that is written; null: `export` in the run folder.
    """

    run: str
    runs: str = "runs"
    output: str | None = None
