"""What the commands beside `framework.train` take, one dataclass a command.

Each dataclass checks what it can see alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from framework.checkpoint.load import Weights
from framework.config.nodes import Component
from framework.config.schema import PrecisionConfig, check_average_last
from framework.data.preparation.corpus import Cleaning
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError
from framework.tasks.token_classification.tagged_rows import ConllFormat


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
        check: Do the checks that need no pass over the texts, print what would be made, and end.
    """

    store: str
    corpus: CorpusConfig
    vocabulary: Component
    overwrite: bool = False
    num_workers: int | None = None
    stream: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(
                f"`num_workers` is {self.num_workers}, but it must be at least 0; raise it, or give null."
            )


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """What was trained, for the commands that use it.

    Attributes:
        run: A run (id or folder), a checkpoint of one, or an export.
        runs: The folder that holds the run folders.
        weights: Of a run: "raw" the trained ones; "ema" their moving average; "auto": the average where one was kept.
        average_last: Of a run: more than 1 takes the mean over its last so many checkpoints (or, of a checkpoint, over
            it and those before it).
        trust: Modules (or packages of them) outside of Cloze whose classes the run or export may name.
        check: Do all checks that need no GPU, print what would be used, and end; nothing is written.
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
    """How what was trained is run, beside what `TrainedConfig` says.

    Attributes:
        task: Keys of the task with values that training did not have (`Task.changeable_keys`); null: none.
        micro_batch_tokens: Most tokens of a forward pass.
    """

    precision: PrecisionConfig
    task: dict[str, Any] | None = None
    micro_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision.name == "float8":
            raise ConfigError("precision=float8 is for training; use precision=bf16 here, whose weights are the same.")
        if self.micro_batch_tokens < 1:
            raise ConfigError(
                f"`micro_batch_tokens` is {self.micro_batch_tokens}, but it must be at least 1; 8192 is the default."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """Everything that `framework.evaluate` takes, beside what `InferenceConfig` says.

    Attributes:
        split: "train", "validation" or "test"; null: the split whose file `data` names, else "validation".
        data: Other data than that of the run; an export needs it.
        output: A JSON file for the metrics; null: they are only printed.
        report: Add an error analysis of the split to the run folder, and draw its report.html again; of an export,
            which has no run folder, into the folder OUTPUT_report beside `output`, where one is given.
        report_examples: Worst rows that the report shows; 0: it shows no texts.
    """

    split: Literal["train", "validation", "test"] | None = None
    data: Component | None = None
    output: str | None = None
    report: bool = True
    report_examples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.report_examples < 0:
            raise ConfigError(
                f"`report_examples` is {self.report_examples}, but it must be at least 0; 0 shows no texts."
            )


@dataclass(frozen=True)
class InputFormat(TableFormat):
    """Format of the file of rows to predict.

    Attributes:
        kind: A kind of table, or "conll": one word per line, and a blank line between sentences.
    """

    kind: Literal["csv", "tsv", "jsonl", "json", "conll"] | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class InputColumns:
    """Layout of CoNLL columns to predict (`framework.tasks.token_classification.tagged_rows`); None: as in training."""

    word_column: int | None = None
    separator: Literal["white_space", "tab"] | None = None
    comment: str | None = None
    word_suffix: str | None = None
    encoding: str | None = None

    def over(self, trained: ConllFormat | None) -> ConllFormat:
        """Returns the layout of training with the values that are given here.

        Raises:
            ConfigError: A value cannot be used.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(trained or ConllFormat(), **given)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InferenceConfig):
    """Everything that `framework.predict` takes, beside what `InferenceConfig` says.

    Attributes:
        input: A CSV, TSV, JSONL, Parquet or Arrow file, or CoNLL columns for tasks that tag words; null where `text`
            is given.
        text: Texts themselves, for tasks that read nothing else; null where `input` is given.
        format: Format of the input file; null: the defaults of TableFormat.
        conll: Layout of CoNLL columns; the column of tags is not read.
        columns: {field of the task: column, in JSONL key}; null: the columns of training, else those with the names
            of the fields.
        keep_columns: Columns that are copied into the output with their values unchanged.
        on_bad_row: Handling of rows that cannot be predicted: "error" stops, "skip" returns nulls and an `error` for
            them.
        output: Output file; its suffix selects JSONL, CSV, TSV or CoNLL; null: standard output.
    """

    input: str | None = None
    text: str | Sequence[str] | None = None
    format: InputFormat | None = None
    conll: InputColumns = InputColumns()
    columns: dict[str, str] | None = None
    keep_columns: Sequence[str] = ()
    on_bad_row: Literal["error", "skip"] = "error"
    output: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.input is None) == (self.text is None):
            raise ConfigError(
                f"`input` is {self.input!r} and `text` is {self.text!r}, but exactly one of them says what to predict."
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TrainedConfig):
    """Everything that `framework.export` takes, beside what `TrainedConfig` says.

    Attributes:
        output: The folder that is written; null: `export` in the run folder, or `adapter` where that is separate.
        lora: Of a run with an adapter: "merge" adds its updates to the weights and writes the whole model;
            "separate" writes the updates alone, for peft.
        onnx: Write `onnx/model.onnx` too, and compare it with the class of transformers; needs the extra `onnx`.
        compare: Load the folder with transformers if that is installed, and compare ids and outputs.
    """

    output: str | None = None
    lora: Literal["merge", "separate"] = "merge"
    onnx: bool = False
    compare: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.onnx and self.lora == "separate":
            raise ConfigError("`onnx` is true and `lora` is separate, but ONNX holds whole models; use lora=merge.")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `framework.report`.

    Attributes:
        run: A run (id or folder).
        runs: The folder that holds the run folders.
    """

    run: str
    runs: str = "runs"
