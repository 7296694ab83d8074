"""Plans a run on any number of GPUs: `python -m framework.plan experiment=NAME plan.nodes=N hardware=NAME`.

The model, the optimizer and the strategy of training run on fake tensors, as rank 0 of fake ranks.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.plan")  # imports this module, and so all of the below, when the config is composed

import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from rich.table import Table
from rich.text import Text

import framework.distributed.processes.early_check
import framework.metrics.import_torchmetrics  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.nodes import check_arguments
from framework.config.schema import TrainConfig
from framework.errors import ConfigError
from framework.planning.alternatives import nearest_fit
from framework.planning.drawn_store import Lengths, write_drawn_store
from framework.planning.fake_run import PhaseRecord, record_phases
from framework.planning.hardware import Hardware
from framework.planning.report import describe_plan, fits
from framework.planning.settings import PlanConfig, PlanSettings
from framework.tracking.console import open_console

_ALLOCATION_BYTES = 512
"""Bytes to a multiple of which torch's allocator for CUDA rounds a block up."""
_DRAWN_TOKENS = 400_000


@command("plan")
def plan(composed: DictConfig) -> list[PhaseRecord]:
    """Prints the plan of a run, and returns the record of each phase."""
    own = {name: composed[name] for name in ("plan", "hardware")}
    with open_dict(composed):
        for name in own:
            del composed[name]
    values = {name: dict(resolve_config(DictConfig(node))) for name, node in own.items()}
    own_config = PlanConfig(**check_arguments("", values, PlanConfig))
    settings, lengths, hardware = own_config.settings, own_config.lengths, own_config.hardware.build()
    with tempfile.TemporaryDirectory(prefix="cloze-plan-") as folder:
        if lengths is not None:
            _use_drawn_store(composed, Path(folder), lengths)
        config = resolve_config(composed, TrainConfig)
        records = record(config, settings, hardware)
        _print(records, hardware, settings, lengths)
        if not _all_fit(records, hardware):
            nearest = nearest_fit(config, lambda changed: _all_fit(record(changed, settings, hardware), hardware))
            remedy = "Use more or larger devices." if nearest is None else f"It fits with {' '.join(nearest)}."
            open_console().print(f"The run does not fit in {hardware.memory_gb:g} GB. {remedy}", soft_wrap=True)
    return records


def _all_fit(records: list[PhaseRecord], hardware: Hardware) -> bool:
    return all(fits(each, hardware) for each in records)


run = plan.run


def record(config: dict[str, Any], settings: PlanSettings, hardware: Hardware) -> list[PhaseRecord]:
    """Records a step of each phase of a training config on the planned ranks."""
    is_cuda = hardware.device == "cuda"
    return record_phases(
        config,
        settings.first_rank,
        hardware.device,
        _ALLOCATION_BYTES if is_cuda else 1,
        hardware.usable_bytes if is_cuda else None,
    )


def _use_drawn_store(composed: DictConfig, folder: Path, lengths: Lengths) -> None:
    """Sets the store of the config to one with drawn lengths.

    Raises:
        ConfigError: The data of the config is not a token store.
    """
    if "store" not in (composed.get("data") or {}).keys():  # noqa: SIM118  a value that is not given is not "in"
        raise ConfigError(
            "plan.lengths is set, but the data of this task is not a token store. Lengths can only replace a store of "
            "pre-training texts. Set plan.lengths to null and give the files of the data."
        )
    write_drawn_store(folder / "store", lengths, _DRAWN_TOKENS)
    composed.data.store = str(folder / "store")


def _print(records: list[PhaseRecord], hardware: Hardware, settings: PlanSettings, lengths: Lengths | None) -> None:
    console = open_console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in describe_plan(records, hardware, settings, lengths):
        table.add_row(name, Text(text))
    console.print(table)
