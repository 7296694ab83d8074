"""Pre-trains or fine-tunes one encoder: `python -m framework.train experiment=NAME`, the same under torchrun."""

if __name__ == "__main__":
    from framework.config.command import start
    from framework.tracking.console import make_console_dispensable

    make_console_dispensable()
    start("framework.train")  # imports this module, and so all of the below, when the config is composed

import gc
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # must come before Lightning
import framework.metrics.import_torchmetrics  # noqa: F401  must come before Lightning
from framework.config.assembly import AssembledRun, assemble_run
from framework.config.command import command, resolve_config
from framework.config.dry_check import print_check
from framework.config.ending import complete_run
from framework.config.records import modules_of
from framework.config.run_check import describe_run, planned_process
from framework.config.run_lock import lock_run_folder, wait_limit
from framework.config.schema import TrainConfig
from framework.config.session import build_run_trainer, is_finished, prepare_training_texts, start_run
from framework.config.supervision import Supervision
from framework.config.wandb_run import log_model_if_configured
from framework.distributed.device import device_type
from framework.distributed.processes.agreement import first_rank_value
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.distributed.processes.host_memory import keep_freed_memory
from framework.distributed.processes.process_group import process_group
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
    if settings.check:
        if info.rank == 0:
            print_check(describe_run(run, _is_finished(run), device))
        return run.folder.path

    timeout = settings.trainer.timeout_seconds
    with lock_run_folder(run.folder.path, info.rank, wait_limit(settings.run.wait_seconds, timeout, info.world_size)):
        with process_group(settings.strategy.name, device, timeout):
            # Another start may have trained in the meantime, so rank 0 reads the folder again under its lock.
            run = run.from_step_in(first_rank_value(run.find_folder))
            while not first_rank_value(partial(_is_finished, run)):
                is_over = _train_phase(run, info, device)
                if not is_over or len(run.phases) == 1:
                    break
                run = run.from_step_in(first_rank_value(run.find_folder))
                gc.collect()  # weights and optimizer of the phase, which its Trainer and module hold in a cycle

        folder = run.folder
        if info.rank == 0:
            complete_run(folder, run.phases[-1].parts.task)
            log_model_if_configured(folder.path, settings.logger, modules_of(run.configs[-1]))
            print_closing_table(folder.path)
    return folder.path


def _is_finished(run: AssembledRun) -> bool:
    last = run.phases[-1]
    return is_finished(run.folder, last.parts, last.settings.trainer.patience)


def _train_phase(run: AssembledRun, info: ProcessInfo, device: str) -> bool:
    """Trains the first phase that is left, and returns True if it reached its last step. Collective."""
    phase, folder = run.phases[0], run.folder
    start_run(folder, phase.config, phase.parts, info.world_size)
    prepare_training_texts(phase.parts, folder, info, device)
    with Supervision(folder.path, info, phase.settings.trainer.timeout_seconds):
        plan = phase.data.plans["train"]
        trainer = build_run_trainer(phase.settings, phase.parts, plan, folder, info, device, phase.phase, run.max_steps)
        trainer.fit(phase.module, datamodule=phase.data)
    return trainer.global_step >= phase.parts.max_steps


run = train.run
