"""Pre-trains or fine-tunes one encoder: `python -m framework.train experiment=NAME`, the same under torchrun."""

import torch
from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.build import build_module, build_parts, build_settings
from framework.config.command import command, plain
from framework.config.records import modules_of
from framework.config.run_folder import find_run_folder
from framework.config.run_lock import alone_in, wait_limit
from framework.config.secrets import masked
from framework.config.session import (
    as_run,
    build_data,
    build_run_trainer,
    is_finished,
    prepare_training_texts,
    start_run,
)
from framework.config.supervision import Supervision
from framework.config.wandb_run import log_model_if_wanted
from framework.distributed.parallel.precision import resolve_precision
from framework.distributed.processes.agreement import first_rank_value
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.host_memory import keep_freed_memory
from framework.distributed.processes.process_group import process_group
from framework.sweeps.search import OptunaSweeper
from framework.sweeps.slurm import SlurmLauncher
from framework.sweeps.start import check_own_process
from framework.sweeps.torchrun import TorchrunLauncher
from framework.tracking.closing_table import print_closing_table
from framework.tracking.console import make_console_dispensable


@command("train", plugins=(TorchrunLauncher, SlurmLauncher, OptunaSweeper))
def train(composed: DictConfig) -> None:
    """Runs one training run from its config, or goes on with it."""
    check_own_process()
    # Every key is checked, then every file is read, then parts are checked against each other.
    info = process_info()
    config = plain(composed)
    settings = build_settings(config, info.world_size)
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    if device_type == "cpu":
        keep_freed_memory()
    wanted = settings.precision
    precision = resolve_precision(wanted.name, device_type, wanted.init_scale, wanted.growth_interval)
    parts = build_parts(settings, info.world_size)
    data = build_data(settings, parts, info, device_type)

    # The config as it will run decides which folder it is, and whether there is a checkpoint to go on from.
    config = masked(composed, as_run(config, parts, precision))
    module = build_module(settings, parts, precision, device_type)
    folder = find_run_folder(settings.run, config)

    # Only now do processes meet and devices get work.
    timeout = settings.trainer.timeout_seconds
    with alone_in(folder.path, info.rank, wait_limit(settings.run.wait_seconds, timeout, info.world_size)):
        with process_group(settings.strategy.name, device_type, timeout):
            # Another start may have gone on meanwhile: what counts is what rank 0 sees under its lock.
            folder = first_rank_value(lambda: find_run_folder(settings.run, config))
            if not first_rank_value(lambda: is_finished(folder, parts, settings.trainer.patience)):
                start_run(folder, config, parts, info.world_size)
                prepare_training_texts(parts, folder, info, device_type)
                with Supervision(folder.path, info, timeout):
                    trainer = build_run_trainer(settings, parts, data.plans["train"], folder, info, device_type)
                    trainer.fit(module, datamodule=data)

        if info.rank == 0:
            log_model_if_wanted(folder.path, settings.logger, modules_of(config))
            print_closing_table(folder.path)


if __name__ == "__main__":
    make_console_dispensable()
    train()
