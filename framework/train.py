"""Pre-trains or fine-tunes one encoder: `python -m framework.train experiment=NAME`, the same under torchrun."""

if __name__ == "__main__":
    from framework.config.command import start
    from framework.tracking.console import make_console_dispensable

    make_console_dispensable()
    start("framework.train")  # imports this module, and so all of the below, when the config is composed

from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # must come before Lightning
import framework.metrics.import_torchmetrics  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.dry_check import print_check
from framework.config.records import modules_of
from framework.config.schema import TrainConfig
from framework.distributed.device import device_type
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.host_memory import keep_freed_memory
from framework.distributed.processes.process_group import process_group
from framework.planning.background import plan_of
from framework.runs.assembly import assemble_run
from framework.runs.check import describe_run, planned_process
from framework.runs.ending import complete_run
from framework.runs.lock import lock_run_folder, wait_limit
from framework.runs.phase_training import is_run_finished, train_phases
from framework.runs.wandb_run import log_model_if_configured
from framework.sweeps.search import OptunaSweeper
from framework.sweeps.slurm import SlurmLauncher
from framework.sweeps.start import check_own_process
from framework.sweeps.torchrun import TorchrunLauncher
from framework.tracking.analysis.closing_table import print_closing_table


@command("train", plugins=(TorchrunLauncher, SlurmLauncher, OptunaSweeper))
def train(composed: DictConfig) -> Path:
    """Runs one training run from its config, or resumes it; returns the run folder."""
    check_own_process()
    config = resolve_config(composed, TrainConfig)
    info = planned_process(config["check"], process_info())
    device = device_type()
    if device == "cpu":
        keep_freed_memory()
    # Keys, files and parts are checked before processes meet and before a device gets work.
    run = assemble_run(config, info, device, composed)
    settings = run.settings
    running_plan = plan_of(config, settings.hardware, info, None if settings.check else device)
    if settings.check:
        if info.rank == 0:
            print_check(describe_run(run, is_run_finished(run), device))
        return run.folder.path

    timeout = settings.trainer.timeout_seconds
    with lock_run_folder(run.folder.path, info.rank, wait_limit(settings.run.wait_seconds, timeout, info.world_size)):
        with running_plan or nullcontext(), process_group(settings.strategy.name, device, timeout):
            run = train_phases(run, info, device, running_plan)

        if info.rank == 0:
            complete_run(run.folder, run.phases[-1].parts.task)
            log_model_if_configured(run.folder.path, settings.logger, modules_of(run.configs[-1]))
            print_closing_table(run.folder.path)
    return run.folder.path


run = train.run
