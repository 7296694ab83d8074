"""Settings of all commands except `framework.train`, one dataclass per command.

Each dataclass checks its own values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from framework.checkpoint.layout import Weights
from framework.config.nodes import Component
from framework.config.shared_schema import PrecisionConfig, check_average_last
from framework.data.canaries import CanarySettings
from framework.data.preparation.corpus import Cleaning
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, check_at_least
from framework.tasks.token_classification.tagged_rows import ConllFormat

MIN_STEPS = 8
"""Fewest points of integrated gradients; with 8 points the completeness error is already about a tenth."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(Cleaning):
    """Texts of a token store, and their cleaning (`Cleaning`).

    Attributes:
        sources: Sources of texts by name, read in this order.
        on_bad_row: Handling of a row that cannot be read: "error" stops, "skip" counts and reports it.
        canaries: Number of canaries (`CanarySettings`); 0: none.
        canary_repeats: Numbers of their copies, which they take in turn.
        canary_seed: Seed of their words.
    """

    sources: dict[str, Component]
    on_bad_row: Literal["error", "skip"] = "error"
    canaries: int = 0
    canary_repeats: tuple[int, ...] = (1, 4, 16)
    canary_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.canary_settings

    @property
    def canary_settings(self) -> CanarySettings | None:
        """Returns the settings of the canaries; None: none.

        Raises:
            ConfigError: They cannot be used.
        """
        if self.canaries == 0:
            return None
        return CanarySettings(self.canaries, tuple(self.canary_repeats), self.canary_seed)


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `framework.prepare`.

    Attributes:
        store: Folder of the store, which the command creates.
        corpus: Texts of the store and their cleaning.
        vocabulary: Tokenizer, or a vocabulary that is trained on the corpus.
        overwrite: Replace a store that was built from other files or settings.
        num_workers: Worker processes; null: one per core that this process may use; 0 or 1: work in this process.
        stream: Store no token ids. Training reads the texts again from the Parquet shards of the corpus.
        check: Run the checks that need no pass over the texts, print what would be built, and exit.
    """

    store: str
    corpus: CorpusConfig
    vocabulary: Component
    overwrite: bool = False
    num_workers: int | None = None
    stream: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if self.num_workers is not None:
            remedy = "Set 0 for no worker processes, or null for one per core."
            check_at_least("`num_workers`", self.num_workers, 0, remedy)


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """Trained model that a command uses.

    Attributes:
        run: Run (id or folder), checkpoint of a run, or export.
        runs: Folder that contains the run folders.
        weights: Weights of a run: "raw" as trained, "ema" their moving average, "auto" the average if it was kept.
        average_last: Number of checkpoints of a run whose weights are averaged: the newest ones, or the given
            checkpoint and those before it. 1 averages none.
        trust: Modules or packages outside of Cloze whose classes the run or export may name.
        check: Run all checks that need no GPU, print what would be used, and exit. Nothing is written.
    """

    run: str
    runs: str = "runs"
    weights: Weights = "auto"
    average_last: int = 1
    check: bool = False
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_average_last("average_last", self.average_last)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(TrainedConfig):
    """Trained model and the settings of its inference.

    Attributes:
        precision: Precision of the forward pass.
        task: Keys of the task with values that differ from training (`Task.changeable_keys`); null: none.
        micro_batch_tokens: Largest number of tokens in a forward pass.
    """

    precision: PrecisionConfig
    task: dict[str, Any] | None = None
    micro_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision.name == "float8":
            raise ConfigError(
                "precision is float8, which is only for training. Use precision=bf16, which has the same weights."
            )
        check_at_least("`micro_batch_tokens`", self.micro_batch_tokens, 1, "The default is 8192.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Settings of `framework.evaluate`.

    Attributes:
        split: "train", "validation" or "test"; null: the split whose file `data` names, else "validation".
        data: Data that replaces the data of the run; required for an export.
        output: JSON file for the metrics; null: the metrics are only printed.
        report: Add an error analysis of the split to the run folder, and create its report.html again. An export has
            no run folder; its analysis is written to the folder OUTPUT_report next to `output`, if `output` is set.
        report_examples: Number of worst rows in the report; 0: the report contains no texts.
        report_explanations: Number of evenly spaced rows that are explained in addition to the worst rows; 0: the
            report contains no explanations.
    """

    split: Literal["train", "validation", "test"] | None = None
    data: Component | None = None
    output: str | None = None
    report: bool = True
    report_examples: int = 20
    report_explanations: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("`report_examples`", self.report_examples, 0, "Set 0 for a report without texts.")
        remedy = "Set 0 for a report without explanations."
        check_at_least("`report_explanations`", self.report_explanations, 0, remedy)


@dataclass(frozen=True)
class InputFormat(TableFormat):
    """Format of the file of rows to predict.

    Attributes:
        kind: A kind of table, or "conll": one word per line, and a blank line between sentences.
    """

    kind: Literal["csv", "tsv", "jsonl", "json", "conll"] | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class InputColumns:
    """Layout of CoNLL columns to predict; None: as in training.

    `framework.tasks.token_classification.tagged_rows` documents the fields.
    """

    word_column: int | None = None
    separator: Literal["white_space", "tab"] | None = None
    comment: str | None = None
    word_suffix: str | None = None
    encoding: str | None = None

    def over(self, trained: ConllFormat | None) -> ConllFormat:
        """Returns the layout of training, replaced by the values that are set here.

        Raises:
            ConfigError: A value cannot be used.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(trained or ConllFormat(), **given)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InferenceConfig):
    """Settings of `framework.predict`.

    Attributes:
        input: CSV, TSV, JSONL, Parquet or Arrow file, or a file of CoNLL columns for tasks that tag words; null if
            `text` is set.
        text: Text or list of texts, for tasks that read only the field `text`; null if `input` is set.
        format: Format of the input file; null: the defaults of TableFormat.
        conll: Layout of CoNLL columns; the column of tags is not read.
        columns: Column of each field of the task (for JSONL, the key); null: the columns of training, else the columns
            with the names of the fields.
        adapters: YAML file that maps names of adapters to runs, which were trained with adapter=lora on the weights
            `run`; null: none.
        adapter_column: Column that names the adapter of each row; null if `adapters` is.
        keep_columns: Columns that are copied into the output with their values unchanged.
        on_bad_row: Handling of rows that cannot be predicted: "error" stops, "skip" returns nulls and an `error` for
            them.
        output: Output file; its suffix selects JSONL, CSV, TSV or CoNLL, or for embeddings .npy or .parquet
            (`framework.inference.vector_files`); null: standard output.
        output_columns: Predicted key or kept column of each column of the output, by its name there; null: all of them.
    """

    input: str | None = None
    text: str | Sequence[str] | None = None
    format: InputFormat | None = None
    conll: InputColumns = InputColumns()
    columns: dict[str, str] | None = None
    adapters: str | None = None
    adapter_column: str | None = None
    keep_columns: Sequence[str] = ()
    on_bad_row: Literal["error", "skip"] = "error"
    output: str | None = None
    output_columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.input is None) == (self.text is None):
            raise ConfigError(
                f"`input` is {self.input!r} and `text` is {self.text!r}. Exactly one of them must be set. Set the "
                "other to null."
            )
        if (self.adapters is None) != (self.adapter_column is None):
            raise ConfigError(
                f"`adapters` is {self.adapters!r} and `adapter_column` is {self.adapter_column!r}. The file of "
                "adapters and the column that names the adapter of a row need each other. Set both, or neither."
            )
        if self.adapters is not None and (self.output or "").lower().endswith((".npy", ".parquet")):
            raise ConfigError(
                f"output={self.output} is for vectors, but `adapters` is {self.adapters!r}. Predictions of several "
                "adapters are rows. Choose a name that ends in .jsonl, .csv or .tsv."
            )
        if self.adapters is not None and self.input is None:
            raise ConfigError(
                f"`adapters` is {self.adapters!r}, but `input` is null. The adapter of a row is named in a column of a "
                "file. Set `input`."
            )


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(PredictConfig):
    """Settings of `framework.explain`.

    Attributes:
        method: Method, see `framework.modules.explanations.attribution.attribute`.
        steps: Points of integrated gradients.
        explain: Score to explain: "label" the predicted one, "all" each label, or the name of a label.
        training_rows: Number of training rows with the largest influence for and against each explained score; 0: none.
        layers: Number of last layers of the encoder whose gradients measure that influence, beside the head.
    """

    method: Literal["integrated_gradients", "gradient", "leave_one_out", "attention_rollout"] = "integrated_gradients"
    steps: int = 32
    explain: str = "label"
    training_rows: int = 0
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < MIN_STEPS:
            raise ConfigError(
                f"`steps` is {self.steps}. Integrated gradients need at least {MIN_STEPS} points. Use the default 32, "
                "or method=gradient for a single point."
            )
        check_at_least("`training_rows`", self.training_rows, 0, "Set 0 to find none.")
        if self.adapters is not None:
            raise ConfigError(
                f"`adapters` is {self.adapters!r}. An explanation reads one model. Explain the rows of each adapter "
                "with its run."
            )
        check_at_least("`layers`", self.layers, 0, "Set 0 to measure the influence on the head only.")
        if (self.output or "").lower().endswith((".conll", ".npy", ".parquet")):
            raise ConfigError(
                f"output={self.output} has no place for explanations. They are written as JSONL, CSV or TSV. Choose a "
                "name that ends in .jsonl, .csv or .tsv."
            )


@dataclass(frozen=True, kw_only=True)
class AuditConfig(InferenceConfig):
    """Settings of `framework.audit`.

    Attributes:
        audit: Audits by name (`framework.audits.audit.Audit`).
        fail_above: Rate above which the exit code is 1, for all audits or by name of the audit; null: none.
        split: Split of the user's data that audits read; null: the split whose file `data` names, else "validation".
        data: Data that replaces the data of the run; an export needs it for audits that read the user's data.
        seed: Seed of the draws of audits.
        report_examples: Number of failed cases that the result of an audit contains; 0: the result contains no texts.
        output: Folder for the results; null: the run folder, or for an export the folder EXPORT_audit beside it.
    """

    audit: dict[str, Component]
    fail_above: float | dict[str, float] | None = None
    split: Literal["train", "validation", "test"] | None = None
    data: Component | None = None
    seed: int = 0
    report_examples: int = 20
    output: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.audit:
            raise ConfigError(
                "`audit` names no audit. The command runs at least one. Add, for example, audit=contrast."
            )
        check_at_least("`report_examples`", self.report_examples, 0, "Set 0 for results without texts.")
        for name in self.fail_above if isinstance(self.fail_above, dict) else ():
            if name not in self.audit:
                raise ConfigError(
                    f"`fail_above` names the audit {name!r}, which is not chosen. Chosen are {', '.join(self.audit)}. "
                    "Choose one of them, or remove it."
                )
        for limit in map(self.limit, self.audit):
            if limit is not None and not 0 <= limit <= 1:
                raise ConfigError(f"`fail_above` is {limit}. It must be from 0 to 1. Choose, for example, 0.1.")

    def limit(self, name: str) -> float | None:
        """Returns the largest accepted rate of an audit; None: any."""
        return self.fail_above.get(name) if isinstance(self.fail_above, dict) else self.fail_above


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TrainedConfig):
    """Settings of `framework.export`.

    Attributes:
        output: Folder that is written; null: `export` in the run folder, or `adapter` if `lora` is "separate".
        lora: Handling of a run with an adapter: "merge" adds the updates to the weights and writes the whole model;
            "separate" writes only the updates, for peft.
        onnx: True also writes `onnx/model.onnx` and compares it with the class of transformers. "fp16" and "int8" write
            a smaller file instead and compare it with fp32 on rows of the data. Requires the extra `onnx`.
        onnx_min_agreement: Lowest accepted agreement of a smaller file with fp32 (`SmallOnnx`), from 0 to 1.
        compare: Load the folder with transformers, if installed, and compare ids and outputs.
        push: Repository of the Hugging Face Hub (OWNER/NAME) that gets the folder; null: nothing is uploaded.
        push_private: A repository that does not exist yet is created as private.
    """

    output: str | None = None
    lora: Literal["merge", "separate"] = "merge"
    onnx: bool | Literal["fp16", "int8"] = False
    onnx_min_agreement: float = 0.97
    compare: bool = True
    push: str | None = None
    push_private: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.onnx and self.lora == "separate":
            raise ConfigError(
                f"`onnx` is {self.onnx} and `lora` is separate. An ONNX file contains a whole model. Use lora=merge."
            )
        if not 0 <= self.onnx_min_agreement <= 1:
            raise ConfigError(
                f"`onnx_min_agreement` is {self.onnx_min_agreement}. It must be from 0 to 1. The default is 0.97."
            )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `framework.report`.

    Attributes:
        run: Run (id or folder).
        runs: Folder that contains the run folders.
    """

    run: str
    runs: str = "runs"
