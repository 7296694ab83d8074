"""Settings of `framework.train`, one dataclass per config group; a group with several classes is a `Component`.

Each dataclass checks its own values. shared_schema.py contains what other commands use too, checks.py the rules between
groups, nodes.py the class `Component`.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from framework.callbacks.early_stopping import Patience
from framework.callbacks.finite_guard import NonFinite, OnNonFinite
from framework.callbacks.time_limit import TimeLimit
from framework.checkpoint.layout import Weights
from framework.config.nodes import Component
from framework.config.run_config import RunConfig
from framework.config.shared_schema import PrecisionConfig, at_least, check_average_last
from framework.distributed.mesh import SHARDED, MeshShape, StrategyName, mesh_shape
from framework.distributed.parallel.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.distributed.parallel.compile import CompileBackend
from framework.distributed.parallel.sharding import Sharding, check_sharding
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.nn.lora import LoraSettings
from framework.privacy.guarantee import PrivacySettings
from framework.tasks.probing.probe import ProbeSettings
from framework.tracking.logger_config import LoggerConfig

MODEL_METADATA = {"target": EncoderConfig, "supplied": tuple(f.name for f in fields(EncoderConfig))}
"""Missing keys of the model are taken from the weights in `init_from`, the vocabulary size from the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of the length, batch, update, validation and checkpoints of a run.

    The comments of conf/trainer/default.yaml, which `--help` prints, document each field.
    """

    max_steps: int | None
    max_epochs: int | None
    max_tokens: int | None = None
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0

    global_batch_size: int | None
    global_batch_tokens: int | None = None
    batch_warmup_start: int | None = None
    batch_warmup_steps: int | None = None
    batch_warmup_tokens: int | None = None
    micro_batch_tokens: int | Literal["auto"]
    num_workers: int = 0

    gradient_clip: float | None = 1.0
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = None
    on_non_finite: OnNonFinite = "stop"
    max_non_finite_steps: int = 10

    val_every_n_steps: int | None = None
    probe_every_n_steps: int | None = None
    evaluate_test: bool = False
    log_every_n_steps: int = 10
    report_examples: int | None = 20
    report_explanations: int = 32
    profile: tuple[int, int] | None = None

    checkpoint_every_n_steps: int | None = None
    checkpoint_async: bool = True
    keep_last: int = 2
    keep_every_n_steps: int | None = None
    keep_best: int = 1

    max_time: str | int | None = None
    timeout_seconds: int = 600

    @property
    def time_limit(self) -> TimeLimit | None:
        """Parses `max_time`; None: no limit.

        Raises:
            ConfigError: The value is not a valid duration.
        """
        try:
            return None if self.max_time is None else TimeLimit.parse(self.max_time)
        except ValueError as error:
            raise ConfigError(
                f"`trainer.max_time` is not a valid duration: {error}. Write ten hours as 10:00:00, and two days as "
                "2-00:00:00."
            ) from error

    @property
    def max_grad_norm(self) -> float | None:
        """Returns the bound of the gradient norm; None if `gradient_clip` is 0 or null: gradients are not clipped."""
        return self.gradient_clip or None

    @property
    def non_finite(self) -> NonFinite:
        """Returns the handling of steps with a loss or gradient that is not finite."""
        return NonFinite(self.on_non_finite, self.max_non_finite_steps)

    @property
    def patience(self) -> Patience | None:
        """Returns the rule for early stopping; None: the run does not stop early."""
        if self.early_stopping_patience is None:
            return None
        return Patience(self.early_stopping_patience, self.early_stopping_min_delta)

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_tokens is None and self.max_epochs is None:
            raise ConfigError(
                "`trainer.max_steps`, `trainer.max_tokens` and `trainer.max_epochs` are null. The length of a run must "
                "be given. Set one of them."
            )
        if self.max_steps is not None and self.max_tokens is not None:
            raise ConfigError(
                f"`trainer.max_steps` is {self.max_steps} and `trainer.max_tokens` is {self.max_tokens}. Only one of "
                "them can be the length of the run. Set the other to null."
            )
        if (self.global_batch_size is None) == (self.global_batch_tokens is None):
            raise ConfigError(
                f"`trainer.global_batch_size` is {self.global_batch_size} and `trainer.global_batch_tokens` is "
                f"{self.global_batch_tokens}. Exactly one of them must be set. Set the other to null."
            )
        lengths = [self.batch_warmup_steps, self.batch_warmup_tokens]
        if (self.batch_warmup_start is not None) != len([each for each in lengths if each is not None]):
            raise ConfigError(
                f"`trainer.batch_warmup_start` is {self.batch_warmup_start}, `trainer.batch_warmup_steps` is "
                f"{self.batch_warmup_steps} and `trainer.batch_warmup_tokens` is {self.batch_warmup_tokens}. A growing "
                "batch needs a start, and a length in steps or in tokens. Set both, or set all to null."
            )
        at_least("trainer", self, 1, "keep_every_n_steps")
        if self.keep_every_n_steps is not None and (
            self.checkpoint_every_n_steps is None or self.keep_every_n_steps % self.checkpoint_every_n_steps
        ):
            raise ConfigError(
                f"`trainer.keep_every_n_steps` is {self.keep_every_n_steps}, and `trainer.checkpoint_every_n_steps`, "
                f"the interval of checkpoints, is {self.checkpoint_every_n_steps}. The first must be a multiple of the "
                "second. Change one of them."
            )
        if self.on_non_finite == "roll_back" and self.checkpoint_every_n_steps is None:
            raise ConfigError(
                "`trainer.on_non_finite` is roll_back, but `trainer.checkpoint_every_n_steps` is null, so there would "
                "be no checkpoint to roll back to. Set `trainer.checkpoint_every_n_steps`, or use "
                "trainer.on_non_finite=skip."
            )
        at_least("trainer", self, 1, "max_steps", "max_epochs", "global_batch_size", "global_batch_tokens")
        at_least("trainer", self, 1, "max_tokens", "batch_warmup_start", "batch_warmup_steps", "batch_warmup_tokens")
        if self.micro_batch_tokens != "auto":
            at_least("trainer", self, 1, "micro_batch_tokens")
        at_least("trainer", self, 1, "log_every_n_steps")
        at_least("trainer", self, 1, "val_every_n_steps", "probe_every_n_steps")
        at_least("trainer", self, 1, "checkpoint_every_n_steps", "keep_last", "timeout_seconds")
        at_least("trainer", self, 0, "num_workers", "gradient_clip", "keep_best", "max_non_finite_steps")
        at_least("trainer", self, 1, "early_stopping_patience")
        at_least("trainer", self, 0, "early_stopping_min_delta", "report_examples", "report_explanations")
        if self.profile is not None and (len(self.profile) != 2 or not 1 <= self.profile[0] <= self.profile[1]):
            raise ConfigError(
                f"`trainer.profile` is {list(self.profile)}. It must be the first and the last step to record, counted "
                "from 1. Write, for example, trainer.profile=[10,15]."
            )
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(
                f"`trainer.ema_decay` is {self.ema_decay}. It must be greater than 0 and less than 1. A usual value is "
                "0.999; null keeps no average."
            )
        _ = self.time_limit  # raises ConfigError if it is invalid


@dataclass(frozen=True)
class TokenizerConfig:
    """Selection of the tokenizer.

    Attributes:
        path: Folder with tokenizer.json or vocab.txt; null: the tokenizer of `init_from`.
        fallback: Folder that is used if `path` is null and `init_from` is null or contains no tokenizer.
    """

    path: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, kw_only=True)
class StrategyConfig(Sharding):
    """Distribution of a run over ranks. `Sharding` documents the keys of the strategies that shard weights.

    Attributes:
        name: "single": one process; "ddp": replicated weights; "fsdp2": sharded weights, gradients and optimizer
            state; "hsdp": copies of the weights, each sharded over a group of ranks; "tp": each matrix product is
            split over all ranks; "fsdp2_tp": each matrix product is split over a group of ranks, and weights are
            sharded over the groups.
        replicate_size: Number of copies for "hsdp"; null: one per host, so that weights are gathered within a host and
            only gradients are sent between hosts. One host has one copy, which is "fsdp2".
        tensor_parallel_size: Ranks that split each matrix product, for "tp" and "fsdp2_tp"; null: all.
        activation_checkpointing: Activations that layers keep from the forward pass for the backward pass.
        compile: "none": layers are not compiled; else the torch.compile backend of each layer: "inductor", or
            "aot_eager" for debugging; "auto": "inductor" for pre-training on CUDA in bf16, else "none"
            (`resolve_compile`).
        graph: Capture training steps as CUDA graphs where the device and the other settings permit it.
        attention: Attention kernel on CUDA in half precision: "flash2" (FlashAttention 2, part of PyTorch), "flash3" or
            "flash4" where installed; "auto": the one that is fastest in the run's micro-batches.
    """

    name: StrategyName
    replicate_size: int | None = None
    tensor_parallel_size: int | None = None
    activation_checkpointing: ActivationCheckpointing = KEEP_ALL
    compile: CompileBackend = "none"
    graph: bool = True
    attention: Literal["auto", "flash2", "flash3", "flash4"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.changed().items():
            if self.name not in SHARDED:
                raise ConfigError(
                    f"`strategy.{name}` is {value!r}, but strategy={self.name} keeps whole weights and gradients on "
                    f"every rank. Use {' or '.join(f'strategy={each}' for each in SHARDED)}, or remove the key."
                )

    def shape(self, world_size: int) -> MeshShape:
        """Returns the shape of the mesh over all processes.

        Args:
            world_size: Number of processes.

        Raises:
            ConfigError: The strategy does not support this number of processes, or one of its sizes does not fit it.
        """
        shape = mesh_shape(self.name, world_size, self.replicate_size, self.tensor_parallel_size)
        check_sharding(self, shape)
        return shape


@dataclass(frozen=True)
class TrialConfig:
    """Trial of a search to which a run belongs.

    Attributes:
        folder: Folder of the sweep.
        number: Number of the trial.
    """

    folder: str
    number: int


@dataclass(frozen=True)
class BenchmarkConfig:
    """Place of a run in a benchmark of several tasks, whose sweep prints a table of scores.

    Attributes:
        name: Name of the benchmark.
        task: Name of the task.
        metrics: Metrics that are the score of the task, such as `val/accuracy`, by their names in the table.
        starts_from: Task of the same sweep from whose run this one starts; null: the run starts from `init_from`.
        in_average: True if the average over tasks includes this task.
        published: Published averages by name of the model.
    """

    name: str
    task: str
    metrics: dict[str, str]
    starts_from: str | None = None
    in_average: bool = True
    published: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError(
                f"benchmark.metrics of {self.task} is empty. A task needs a score. Name a metric, for example "
                "{accuracy: val/accuracy}."
            )


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `framework.train`, one field per config group.

    Attributes:
        seed: Seed of the data order, text pairs, masks, dropout and fresh weights.
        init_from: Source of the starting weights of a run that does not resume: a run (id or folder), an export, a
            Hugging Face folder or hub name; null: fresh weights from the seed.
        init_weights: Weights of the run in `init_from`, as in `TrainedConfig.weights`.
        init_average_last: Number of its checkpoints that are averaged, as in `TrainedConfig.average_last`.
        extend_vocabulary: True if `tokenizer` has new tokens after those of `init_from`; their rows start as the mean
            of the rows of their old pieces.
        init_tiling: True if the model is a larger one of the same kind, whose weights are tiled from those of
            `init_from`.
        init_layers: Layers of `init_from` from which the layers of the model start, counted from 1; null: all.
        adapter: Low-rank updates that are trained instead of the weights; null: the weights are trained.
        augmentation: Changes to texts of the training split; null: no changes.
        privacy: Differential privacy of the training data; null: none.
        probes: Probes that are fitted to the features of the encoder during the run, by name.
        check: True: run all checks that need no GPU, print what would run, and exit; a number N: the same for N
            processes.
        phases: Changes of each phase by its name (`framework.config.phases`); empty: the run has no phases.
        phase: Name of the phase whose settings these are; None: the run has no phases. Set when a run is assembled.
        benchmark: Place of the run in a benchmark, see conf/experiment/glue.yaml; null: none.
        trial: Trial of a search, which sets this key, see conf/hydra/sweeper/optuna.yaml; null: no search.
        hardware: Device whose planned memory and step time the run is compared with; null: it is not compared.
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
    schedule: Component = field(metadata={"supplied": ("max_steps", "token_steps")})
    model: Component = field(metadata=MODEL_METADATA)
    init_weights: Weights = "auto"
    init_average_last: int = 1
    extend_vocabulary: bool = False
    init_tiling: bool = False
    init_layers: tuple[int, ...] | None = None
    adapter: LoraSettings | None = None
    augmentation: Component | None = field(default=None, metadata={"supplied": ("pairs_folder",)})
    privacy: PrivacySettings | None = None
    probes: dict[str, ProbeSettings] = field(default_factory=dict)
    benchmark: BenchmarkConfig | None = None
    trial: TrialConfig | None = None
    hardware: Component | None = None
    phases: dict[str, Any] = field(default_factory=dict)
    phase: str | None = None
    check: bool | int = False

    def __post_init__(self) -> None:
        check_average_last("init_average_last", self.init_average_last)
        if self.init_from is None and (self.init_weights != "auto" or self.init_average_last != 1):
            raise ConfigError(
                f"`init_weights` is {self.init_weights} and `init_average_last` is {self.init_average_last}, but "
                "`init_from` is null. Both keys select weights of the run in `init_from`. Set `init_from`, or remove "
                "both keys."
            )
        if self.init_from is None and self.init_tiling:
            raise ConfigError(
                "`init_tiling` is true, but `init_from` is null. Tiling needs the weights of a smaller encoder. Set "
                "`init_from`, or remove `init_tiling`."
            )
        if self.init_from is None and self.init_layers is not None:
            raise ConfigError(
                f"`init_layers` is {list(self.init_layers)}, but `init_from` is null. The key chooses layers of these "
                "weights. Set `init_from`, or remove `init_layers`."
            )
        if self.init_from is None and self.extend_vocabulary:
            raise ConfigError(
                "`extend_vocabulary` is true, but `init_from` is null. Fresh weights have a row for every token of "
                "their tokenizer. Set `init_from`, or remove `extend_vocabulary`."
            )
