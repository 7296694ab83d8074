"""The fixed parts of a config, one dataclass a group; what may be of several kinds is a `Component` (see nodes.py).

Each dataclass checks what it can see alone; rules between groups stand in checks.py.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from framework.callbacks.early_stopping import Patience
from framework.callbacks.finite_guard import NonFinite, OnNonFinite
from framework.callbacks.time_limit import TimeLimit
from framework.checkpoint.load import Weights
from framework.config.nodes import Component
from framework.config.run_config import RunConfig
from framework.data.planning.batch_size import BatchWarmup
from framework.distributed.mesh import SHARDED, MeshShape, StrategyName, mesh_shape
from framework.distributed.parallel.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.distributed.parallel.compile import CompileBackend
from framework.distributed.parallel.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, LARGEST_SCALE, SMALLEST_SCALE
from framework.distributed.parallel.sharding import Sharding, check_sharding
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.nn.lora import LoraSettings
from framework.tasks.probing.probe import ProbeSettings

MODEL_METADATA = {"target": EncoderConfig, "supplied": tuple(f.name for f in fields(EncoderConfig))}
"""Keys of the model that are left out come from the weights in `init_from`, the vocabulary size from the tokenizer."""


_LARGEST = 10**12
"""No count of a run needs more; beyond 2**63 Python itself refuses a length."""


def at_least(group: str, node: Any, minimum: float, *names: str) -> None:
    """Raises ConfigError where a value that is given lies below the minimum or is absurdly large."""
    for name in names:
        value = getattr(node, name)
        if value is not None and value > _LARGEST:
            raise ConfigError(f"`{group}.{name}` is {value}, but it must be at most {_LARGEST:,}; lower it.")
        if value is not None and value < minimum:
            raise ConfigError(f"`{group}.{name}` is {value}, but it must be at least {minimum}; raise it.")


def check_average_last(name: str, value: int) -> None:
    """Raises ConfigError where the number of checkpoints to average is below 1."""
    if value < 1:
        raise ConfigError(f"`{name}` is {value}, but it must be at least 1; 1 takes no mean.")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length, batch, update, validation and checkpoints of a run.

    The comments of conf/trainer/default.yaml, which `--help` prints, document each field.
    """

    max_steps: int | None
    max_epochs: int | None
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0

    global_batch_size: int | None
    global_batch_tokens: int | None = None
    batch_warmup_start: int | None = None
    batch_warmup_steps: int | None = None
    micro_batch_tokens: int | Literal["auto"]
    num_workers: int = 0

    gradient_clip: float | None = 1.0
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = None
    on_non_finite: OnNonFinite = "stop"
    max_non_finite_steps: int = 10

    val_every_n_steps: int | None = None
    probe_every_n_steps: int | None = None
    log_every_n_steps: int = 10
    report_examples: int | None = 20

    checkpoint_every_n_steps: int | None = None
    checkpoint_async: bool = True
    keep_last: int = 2
    keep_every_n_steps: int | None = None
    keep_best: int = 1

    max_time: str | int | None = None
    timeout_seconds: int = 600

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
    def max_grad_norm(self) -> float | None:
        """Returns `gradient_clip` as a bound; None: gradients are not clipped. A bound of 0 would train nothing."""
        return self.gradient_clip or None

    @property
    def non_finite(self) -> NonFinite:
        """What is done at a step that is not finite."""
        return NonFinite(self.on_non_finite, self.max_non_finite_steps)

    @property
    def patience(self) -> Patience | None:
        """When the run ends before its last step; None: never."""
        if self.early_stopping_patience is None:
            return None
        return Patience(self.early_stopping_patience, self.early_stopping_min_delta)

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
        at_least("trainer", self, 1, "keep_every_n_steps")
        if self.keep_every_n_steps is not None and (
            self.checkpoint_every_n_steps is None or self.keep_every_n_steps % self.checkpoint_every_n_steps
        ):
            raise ConfigError(
                f"`trainer.keep_every_n_steps` is {self.keep_every_n_steps}, but checkpoints are written by "
                f"`trainer.checkpoint_every_n_steps`, which is {self.checkpoint_every_n_steps}; set the first to a "
                "multiple of the second."
            )
        if self.on_non_finite == "roll_back" and self.checkpoint_every_n_steps is None:
            raise ConfigError(
                "`trainer.on_non_finite` is roll_back, but `trainer.checkpoint_every_n_steps` is null, so there would "
                "be no checkpoint to roll back to; set it, or choose skip."
            )
        at_least("trainer", self, 1, "max_steps", "max_epochs", "global_batch_size", "global_batch_tokens")
        at_least("trainer", self, 1, "batch_warmup_start", "batch_warmup_steps")
        if self.micro_batch_tokens != "auto":
            at_least("trainer", self, 1, "micro_batch_tokens")
        at_least("trainer", self, 1, "log_every_n_steps")
        at_least("trainer", self, 1, "val_every_n_steps", "probe_every_n_steps")
        at_least("trainer", self, 1, "checkpoint_every_n_steps", "keep_last", "timeout_seconds")
        at_least("trainer", self, 0, "num_workers", "gradient_clip", "keep_best", "max_non_finite_steps")
        at_least("trainer", self, 1, "early_stopping_patience")
        at_least("trainer", self, 0, "early_stopping_min_delta", "report_examples")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(
                f"`trainer.ema_decay` is {self.ema_decay}, but it must lie between 0 and 1; 0.999 is usual, null "
                "keeps no average."
            )
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


@dataclass(frozen=True, kw_only=True)
class StrategyConfig(Sharding):
    """How ranks share the work, beside what `Sharding` says of the strategies that shard weights.

    Attributes:
        name: "single" one process; "ddp" replicated weights; "fsdp2" sharded weights, gradients and optimizer state;
            "hsdp" copies of the weights, each sharded over a group of ranks; "tp" all ranks share each matrix product;
            "fsdp2_tp" groups of ranks share products, and the groups weights.
        replicate_size: Copies, for "hsdp"; null: one a host, so that weights are gathered within a host and only
            gradients travel between hosts (on one host there is one copy, which is "fsdp2").
        tensor_parallel_size: Ranks that share each matrix product, for "tp" and "fsdp2_tp"; null: all.
        activation_checkpointing: What layers keep of their forward pass for the backward pass.
        compile: "none": layers run as they are; else the backend of torch.compile for each layer: "inductor", or
            "aot_eager" to look for faults.
    """

    name: StrategyName
    replicate_size: int | None = None
    tensor_parallel_size: int | None = None
    activation_checkpointing: ActivationCheckpointing = KEEP_ALL
    compile: CompileBackend = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.changed().items():
            if self.name not in SHARDED:
                raise ConfigError(
                    f"`strategy.{name}` is {value!r}, but strategy {self.name} keeps whole weights and gradients on "
                    f"every rank; use {' or '.join(f'strategy={each}' for each in SHARDED)}, or leave the key away."
                )

    def shape(self, world_size: int) -> MeshShape:
        """Of the mesh over that many processes.

        Raises:
            ConfigError: The strategy cannot run on so many, or what it shares out does not fit them.
        """
        shape = mesh_shape(self.name, world_size, self.replicate_size, self.tensor_parallel_size)
        check_sharding(self, shape)
        return shape


@dataclass(frozen=True)
class PrecisionConfig:
    """The numbers that products are made of.

    Attributes:
        name: "fp32"; "bf16" or "fp16" for matrix products; "auto": bf16 where the hardware multiplies it natively, else
            fp32; "float8" for the linear maps of layers, bf16 for the rest (CUDA with torchao, training only).
        init_scale: What losses are multiplied by in fp16 at the start of a run, so that small gradients do not vanish.
        growth_interval: Steps without an overflow after which that scale is doubled.
    """

    name: Literal["fp32", "bf16", "fp16", "auto", "float8"]
    init_scale: float = INITIAL_SCALE
    growth_interval: int = GROWTH_INTERVAL

    def __post_init__(self) -> None:
        at_least("precision", self, 1, "growth_interval")
        if not SMALLEST_SCALE <= self.init_scale <= LARGEST_SCALE:
            raise ConfigError(
                f"`precision.init_scale` is {self.init_scale}, but it must be between 1 and 2^127, the largest power "
                "of two in fp32; 65536 is usual."
            )


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go beside the run folder.

    Attributes:
        name: "none", or "wandb" (Weights & Biases).
        project: The project on the server.
        group: A group of runs on the server; null: the sweep of which the run is a job, if it is.
        job_type: The kind of run in its group; null: in a sweep the values that the job tries, else "train".
        tags: Words to find the run by.
        mode: "online", "offline", or "auto": online where an API key is configured.
        log_model: Export the run when it has finished, and log the export as an artifact.
    """

    name: Literal["none", "wandb"]
    project: str = "cloze"
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline"] = "auto"
    log_model: bool = False


@dataclass(frozen=True)
class TrialConfig:
    """The trial of a search that the run is of.

    Attributes:
        folder: Of the sweep.
        number: Of the trial.
    """

    folder: str
    number: int


@dataclass(frozen=True)
class TrainConfig:
    """Everything that `framework.train` takes: one field a config group.

    Attributes:
        seed: Decides order, pairs, masks, dropout and fresh weights.
        init_from: Where weights start when nothing is resumed: a run (id or folder), an export, a Hugging Face folder
            or hub name; null: fresh weights from the seed.
        init_weights: Which weights of the run in `init_from`: as `TrainedConfig.weights`.
        init_average_last: Over how many of its checkpoints the mean is taken: as `TrainedConfig.average_last`.
        adapter: Low-rank updates that are trained in place of the weights; null: the weights themselves are trained.
        augmentation: How texts of the training split are changed; null: they are not.
        probes: What is read off the encoder's features while it is trained, by name.
        check: True ends after all checks that need no GPU and prints what would run; a number N checks the config for N
            processes.
        trial: Set by a search, see conf/hydra/sweeper/optuna.yaml; null: the run belongs to none.
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
    regularization: Component
    schedule: Component = field(metadata={"supplied": ("max_steps",)})
    model: Component = field(metadata=MODEL_METADATA)
    init_weights: Weights = "auto"
    init_average_last: int = 1
    adapter: LoraSettings | None = None
    augmentation: Component | None = None
    probes: dict[str, ProbeSettings] = field(default_factory=dict)
    trial: TrialConfig | None = None
    check: bool | int = False

    def __post_init__(self) -> None:
        check_average_last("init_average_last", self.init_average_last)
        if self.init_from is None and (self.init_weights != "auto" or self.init_average_last != 1):
            raise ConfigError(
                f"`init_weights` is {self.init_weights} and `init_average_last` is {self.init_average_last}, but "
                "`init_from` is null; give the run whose weights are meant, or leave both out."
            )
