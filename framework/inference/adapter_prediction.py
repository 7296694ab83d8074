"""Predicts rows of many customers, each with its own adapter and head, on one shared encoder.

A file names the run of each adapter, or a folder of peft. The column `adapter_column` names the adapter of each row.
Only adapters that rows name are read.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.config.command_schema import PredictConfig
from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.device import device_type
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.precision import resolve_precision
from framework.distributed.processes.environment import process_info
from framework.errors import CheckpointError, ConfigError, DataError
from framework.exports.adapters import TrainedAdapter
from framework.exports.peft_folder import is_peft_folder, read_peft_folder
from framework.inference.input_rows import InputRow, no_row_error, stream_input_rows
from framework.inference.prediction_files import cell_text
from framework.modules.adapter_inference import AdapterInference
from framework.nn.lora_bank import TokenRanges, apply_bank
from framework.published.pretrained import PretrainedWeights
from framework.published.rules import part_of
from framework.runs.task_parts import build_model
from framework.runs.trained import Trained, check_head_is_complete, check_tokenizer, inference_mesh, with_task
from framework.runs.weights import find_adapter_weights, find_run, find_weights, starting_values
from framework.tasks.sequence_classification.task import SequenceClassificationTask

_SHOWN_NAMES = 20


@dataclass(frozen=True)
class _Adapter:
    """An adapter: its run, with the frozen weights of its encoder and the weights of its head, and its updates."""

    name: str
    trained: Trained
    updates: TrainedAdapter


@dataclass(frozen=True)
class AdapterRows:
    """Rows of several adapters, before a model is on the device.

    Attributes:
        inputs: All rows of the input.
        facts: Rows of (name, text) for `check`.
        base: Weights that all adapters share.
        adapters: Adapters that the rows name.
        owners: Index of the adapter of each valid row.
    """

    inputs: list[InputRow]
    facts: list[tuple[str, str]]
    base: PretrainedWeights
    adapters: list[_Adapter]
    owners: list[int]

    def predict(self, settings: PredictConfig) -> list[dict[str, Any]]:
        """Returns the predictions of the valid rows, in their order. Collective: all ranks must call."""
        rows = [each.row for each in self.inputs if each.row is not None]
        sources = [
            adapter.trained.task.build_source(
                [row for row, owner in zip(rows, self.owners, strict=True) if owner == index], adapter.trained.tokenizer
            )
            for index, adapter in enumerate(self.adapters)
        ]
        with inference_mesh(self.base.source) as mesh:
            inference = _inference(self.base, self.adapters, settings, mesh)
            remaining = [iter(predictions) for predictions in inference.predict(sources)]
        return [next(remaining[owner]) for owner in self.owners]


def open_adapter_rows(settings: PredictConfig) -> AdapterRows:
    """Reads the rows, then the base and the adapters that the rows name.

    Raises:
        ConfigError: `adapters.yaml` cannot be used, or the adapters read different columns.
        DataError: A row names an unknown adapter, or cannot be predicted.
        CheckpointError: A run has no adapter, or its adapter was trained on other weights than the base.
    """
    assert settings.adapters is not None and settings.adapter_column is not None and settings.input is not None
    runs = _read_names(settings)
    names = _names_of_rows(settings, runs)
    base = find_weights(settings.run, Path(settings.runs))
    used = list(dict.fromkeys(name for name in names if name in runs))
    adapters = [_open_adapter(name, runs[name], settings, base) for name in used]
    _check_same_columns(adapters, settings)
    first = adapters[0].trained
    kept = list(dict.fromkeys([*settings.keep_columns, settings.adapter_column]))
    rows = stream_input_rows(replace(settings, keep_columns=kept), first.task, first.tokenizer, first.file_layout)
    reading = Reading(settings.on_bad_row)
    by_name = {adapter.name: adapter for adapter in adapters}
    inputs = [_with_adapter(each, settings, by_name, runs, reading) for each in rows]
    if all(each.row is None for each in inputs):
        raise no_row_error(settings.input, inputs[0].error if inputs else None)
    index_of = {adapter.name: index for index, adapter in enumerate(adapters)}
    owners = [index_of[cell_text(each.kept[settings.adapter_column]) or ""] for each in inputs if each.row is not None]
    counts = Counter(owners)
    facts = [(adapter.name, f"{counts[index]:,} rows, {runs[adapter.name]}") for index, adapter in enumerate(adapters)]
    return AdapterRows(inputs, facts, base, adapters, owners)


def _read_names(settings: PredictConfig) -> dict[str, str]:
    """Reads the file that maps names of adapters to runs."""
    file = Path(settings.adapters or "")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).replace("\n", " ")
        raise ConfigError(
            f"adapters={settings.adapters} cannot be read ({reason}). It must be a YAML file of lines `NAME: RUN`. "
            "Correct the file."
        ) from error
    if not isinstance(content, Mapping) or not content or not all(isinstance(run, str) for run in content.values()):
        raise ConfigError(
            f"adapters={settings.adapters} is not a mapping of names to runs. Each line must be `NAME: RUN`, for "
            "example `acme: runs/acme`. Correct the file."
        )
    runs = {str(name): str(run) for name, run in content.items()}
    for name, run in runs.items():
        if find_run(run, Path(settings.runs)) is None and not is_peft_folder(run):
            raise ConfigError(
                f"{file}: the adapter {name} is {run}, which is neither a run nor a folder of peft. Updates are read "
                "from a run that was trained with adapter=lora, or from a folder with adapter_config.json. Correct it."
            )
    return runs


def _names_of_rows(settings: PredictConfig, runs: Mapping[str, str]) -> list[str]:
    """Returns the adapter of each row that can be read, and checks that it is known."""
    path, column = Path(settings.input or ""), str(settings.adapter_column)
    reading = Reading(settings.on_bad_row)
    names = []
    for row in read_rows(path, [column], reading, settings.format):
        if settings.on_bad_row == "error":
            _check_known(f"{path}, {row.location}", row.values[column], column, runs, settings)
        names.append(row.values[column])
    if not any(name in runs for name in names):
        raise DataError(
            f"{path}: no row names a known adapter in the column {column!r}. Known are {_shown(runs)}. Correct the "
            "column or `adapter_column`."
        )
    return names


def _check_known(location: str, name: str, column: str, runs: Mapping[str, str], settings: PredictConfig) -> None:
    if name not in runs:
        raise DataError(
            f"{location}: {column!r} is {name!r}, which is no adapter of {settings.adapters}. Known are "
            f"{_shown(runs)}. Correct the row, or add the adapter to the file."
        )


def _shown(runs: Mapping[str, str]) -> str:
    names = ", ".join(list(runs)[:_SHOWN_NAMES])
    return names if len(runs) <= _SHOWN_NAMES else f"{names} and {len(runs) - _SHOWN_NAMES} more"


def _open_adapter(name: str, run: str, settings: PredictConfig, base: PretrainedWeights) -> _Adapter:
    own = replace(settings, run=run)
    found = find_run(run, Path(settings.runs))
    if found is None:
        updates, weights = read_peft_folder(Path(run), base)
        is_recorded = "config" in weights.task_record
        trained = with_task(weights, None, own, settings.task) if is_recorded else _open_classifier(weights)
        return _Adapter(name, trained, updates)
    updates, weights = find_adapter_weights(run, Path(settings.runs), settings.weights, settings.average_last)
    _check_base(name, run, updates, weights, base)
    trained = with_task(weights, found[0], own, settings.task)
    # All adapters share the tensors of the base.
    return _Adapter(name, replace(trained, weights=replace(weights, encoder=base.encoder)), updates)


def _open_classifier(weights: PretrainedWeights) -> Trained:
    """Returns published weights with the task of their head, a classification of sequences.

    Raises:
        CheckpointError: They have another head, or no tokenizer.
    """
    if weights.head_kind != SequenceClassificationTask.head_kind or weights.tokenizer_dir is None:
        raise CheckpointError(
            f"{weights.source} does not record its task. Without a record, only classifications of sequences with a "
            "tokenizer are predicted. Give a run, or a folder that framework.export wrote."
        )
    record = weights.task_record
    task = SequenceClassificationTask(
        max_length=weights.config.max_sequence_length,
        pooling=record.get("pooling", "cls"),
        problem=str(record["problem"]),
    )
    task.restore(record)
    tokenizer = Tokenizer.from_folder(weights.tokenizer_dir)
    check_tokenizer(tokenizer, weights, None)
    return Trained(weights, tokenizer, task, record, None, None, None, None)


def _check_base(
    name: str, run: str, updates: TrainedAdapter, weights: PretrainedWeights, base: PretrainedWeights
) -> None:
    """Checks that the frozen weights of an adapter are those of the base, number by number."""
    both = weights.encoder.keys() & base.encoder.keys()
    differs = sorted(weights.encoder.keys() ^ base.encoder.keys())
    differs += [each for each in sorted(both) if not torch.equal(weights.encoder[each], base.encoder[each])]
    trained = [
        each for each in differs if any(fnmatchcase(f"encoder.{each}", one) for one in updates.settings.train_also)
    ]
    if trained:
        raise CheckpointError(
            f"the adapter {name} ({run}) also trained encoder.{trained[0]} (adapter.train_also). Adapters of one "
            f"encoder may train only updates and heads. Predict its rows apart, with run={run}."
        )
    if differs:
        raise CheckpointError(
            f"the adapter {name} ({run}) was trained on other weights than run={base.source}: encoder.{differs[0]} "
            f"differs. All adapters must share the base. Give the weights that its run started from (init_from), or "
            f"predict its rows apart, with run={run}."
        )


def _check_same_columns(adapters: Sequence[_Adapter], settings: PredictConfig) -> None:
    """Checks that one reading of the file serves all adapters."""
    first = adapters[0]
    for each in adapters:
        layouts = [one.trained.file_layout for one in (first, each)]
        if any(layout is not None and layout.masking is not None for layout in layouts):
            raise ConfigError(
                f"the adapter {each.name} masks personal data in its rows. Rows of several adapters are read without "
                "masks. Predict its rows apart."
            )
        columns = [{} if layout is None or settings.columns else layout.field_columns for layout in layouts]
        if each.trained.task.field_choices != first.trained.task.field_choices or columns[0] != columns[1]:
            raise ConfigError(
                f"the adapters {first.name} and {each.name} read different columns ({_read(first)} and {_read(each)}). "
                "One file needs the same columns for all. Set `columns`, or predict their rows apart."
            )


def _read(adapter: _Adapter) -> str:
    layout = adapter.trained.file_layout
    columns = {} if layout is None else layout.field_columns
    return ", ".join(columns.get(name, name) for name in adapter.trained.task.fields)


def _with_adapter(
    each: InputRow,
    settings: PredictConfig,
    adapters: Mapping[str, _Adapter],
    runs: Mapping[str, str],
    reading: Reading,
) -> InputRow:
    """Checks a row for the task of its adapter."""
    if each.row is None:
        return each
    column = str(settings.adapter_column)
    name = cell_text(each.kept[column]) or ""
    try:
        _check_known(f"{settings.input}, {each.row.location}", name, column, runs, settings)
        trained = adapters[name].trained
        trained.task.check_row(each.row, trained.tokenizer)
    except DataError as error:
        reading.bad_row(error)
        return InputRow(None, each.kept, str(error))
    return each


def _inference(
    base: PretrainedWeights, adapters: Sequence[_Adapter], settings: PredictConfig, mesh: DeviceMesh | None
) -> AdapterInference:
    """Moves the encoder with all updates, and the heads, to the device of this process."""
    kind, info = device_type(), process_info()
    device = torch.device(kind, info.local_rank) if kind == "cuda" else torch.device(kind)
    heads = []
    for adapter in adapters:
        model, weights = build_model(adapter.trained.task, base.config), adapter.trained.weights
        check_head_is_complete(model, weights)
        values = dict(starting_values(weights, base.config, seed=0)(model))
        if adapter is adapters[0]:
            encoder = model.encoder
            materialize(encoder, _part(values, "encoder."), device)
        materialize(model.head, _part(values, "head."), device)
        heads.append(model.head.eval())
    ranges = TokenRanges()
    states = [(each.updates.settings, part_of(each.updates.state, "encoder.")) for each in adapters]
    apply_bank(encoder, base.config.num_heads, states, ranges)
    return AdapterInference(
        encoder.to(device).eval(),
        ranges,
        heads,
        [adapter.trained.task for adapter in adapters],
        settings.micro_batch_tokens,
        resolve_precision(settings.precision.name, kind),
        device,
        info.rank,
        mesh,
    )


def _part(values: Mapping[str, Callable[[], Tensor]], prefix: str) -> list[tuple[str, Callable[[], Tensor]]]:
    """Returns the initial values of one part of a model, under the names of that part."""
    return [(name.removeprefix(prefix), value) for name, value in values.items() if name.startswith(prefix)]
