"""Objects and records of one start of a run: first files in the run folder, LightningDataModule, and Trainer."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from framework.batch import StepBatch
from framework.callbacks.attention_choice import AttentionChoice
from framework.callbacks.auto_budget import AutoBudget
from framework.callbacks.cadence import Cadence
from framework.callbacks.data_lines import DataLines
from framework.callbacks.early_stopping import Patience
from framework.callbacks.error_analysis import ErrorAnalysis
from framework.callbacks.plan_comparison import RunningPlan
from framework.callbacks.plan_line import WeightsLine
from framework.callbacks.profile import Profile
from framework.callbacks.resume import PhaseBegin, Resume
from framework.callbacks.standard import Endings, standard_callbacks
from framework.callbacks.throughput import Throughput
from framework.callbacks.timings import Timings
from framework.checkpoint.layout import DamagedError, read_state, step_of
from framework.config.phases import PHASE, Phase
from framework.config.schema import TrainConfig
from framework.data.facts import SplitFacts, facts_of, without_texts
from framework.data.planning.collate import shape_on
from framework.data.tokenization.tokenizer import SEPARATORS_KEY
from framework.datamodules.datamodule import EncoderDataModule
from framework.distributed.memory import CudaMemory
from framework.distributed.parallel.compile import CompileBackend
from framework.distributed.parallel.precision import Precision
from framework.distributed.peak_flops import peak_flops
from framework.distributed.processes.agreement import check_agreement, check_shared_folder, on_first_rank
from framework.distributed.processes.environment import ProcessInfo
from framework.distributed.strategy import build_strategy
from framework.files import sync_tree
from framework.models.accounting import training_flops
from framework.modules.passes.distillation import Distillation
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.teacher import Teacher
from framework.modules.trainer import build_trainer
from framework.published.starting_head import describe_start
from framework.runs.assembled_run import AssembledRun
from framework.runs.augmenting import prepare_word_samples
from framework.runs.build import Parts
from framework.runs.ending import retention_of
from framework.runs.folder import (
    TOKENIZER_FOLDER,
    RunFolder,
    check_same_data,
    read_config,
    write_start,
)
from framework.runs.privacy import open_secret
from framework.runs.provenance import data_fingerprint, facts_to_agree_on, provenance
from framework.runs.record_files import begin_records, report_damaged_records
from framework.runs.teaching import describe_teacher
from framework.runs.wandb_run import open_wandb_run
from framework.tasks.rewriting import RewritingHead
from framework.tasks.task import Task
from framework.tracking.data_facts import write_data_facts
from framework.tracking.loggers import open_loggers
from framework.tracking.run_files import BEST_METRIC
from framework.tracking.study import StudyTrial
from framework.tracking.summary_file import read_summary


def as_run(
    config: Mapping[str, Any], parts: Parts, precision: Precision, compile_backend: CompileBackend
) -> dict[str, Any]:
    """Returns the config as the run uses it: with all keys of the model, and the values that "auto" selects."""
    resolved = {name: value for name, value in config.items() if name not in ("experiment", "check")}
    private = {} if parts.privacy is None else {"trainer": config["trainer"] | {"report_examples": None}}
    return (
        resolved
        | private
        | {
            "model": parts.config.record(),
            "precision": config["precision"] | {"name": precision.name},
            "strategy": config["strategy"] | {"compile": compile_backend},
        }
    )


def is_finished(folder: RunFolder, parts: Parts, patience: Patience | None) -> bool:
    """Returns True if the run has finished: its summary says so, and its newest checkpoint is at the last step.

    Args:
        folder: Run folder.
        parts: Components of the run or of its last phase, with the number of steps.
        patience: Rule for early stopping, which may have ended the run before; None: no early stopping. If the rule of
            this start allows more validations, the run is not finished.
    """
    summary = read_summary(folder.path)
    if folder.checkpoint is None or summary is None or summary["ended"] != "finished":
        return False
    if min(step_of(folder.checkpoint), summary["steps"]) >= parts.max_steps:
        return True
    if patience is None or step_of(folder.checkpoint) < summary["steps"]:
        return False
    try:
        return patience.is_spent(read_state(folder.checkpoint)["callbacks"])
    except DamagedError:
        return False  # the run resumes from an older checkpoint


def start_run(folder: RunFolder, config: Mapping[str, Any], parts: Parts, world_size: int) -> None:
    """Checks that all ranks start the same run in the same folder, and writes its config, provenance and tokenizer.

    Collective: all ranks must call.

    Args:
        folder: Run folder.
        config: Resolved config of the run with masked secrets (`as_run`).
        parts: Components of the run.
        world_size: Number of processes.

    Raises:
        DistributedError: Ranks differ in config, code, data or library versions, or do not see the same folder.
    """
    report_examples = config["trainer"]["report_examples"]
    fingerprints = {"tokenizer": parts.tokenizer.fingerprint, "data": data_fingerprint(parts.sources)}
    teacher = _teacher(parts)
    if teacher is not None:
        fingerprints["teacher"] = teacher.fingerprint
    phase = config.get(PHASE)
    check_same_data(folder, parts.tokenizer, fingerprints["data"], phase, fingerprints.get("teacher"))
    # Each rank has read the weights itself. If their run is still training, ranks may have read different checkpoints.
    start = {"init_from": parts.weights.source} if parts.weights is not None else {}
    check_agreement(facts_to_agree_on(config, fingerprints) | start)
    check_shared_folder(folder.path)
    if folder.checkpoints.parent != folder.path:
        check_shared_folder(folder.checkpoints)

    def write() -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        report_damaged_records(folder.path)
        begin_records(folder.path, folder.checkpoint, folder.lost_step, folder.is_new)
        tokenizer = folder.path / TOKENIZER_FOLDER
        if not tokenizer.exists():
            temporary = tokenizer.with_name(TOKENIZER_FOLDER + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            parts.tokenizer.save(temporary)
            sync_tree(temporary)
            temporary.rename(tokenizer)
        record = {**task_record(parts.task, parts.tokenizer.pair_separators), "config": config["task"]}
        hub = {"base_model": parts.weights.hub_name} if parts.weights is not None and parts.weights.hub_name else {}
        start_of_run = provenance(fingerprints, world_size) | hub | ({} if phase is None else {PHASE: phase})
        write_data_facts(folder.path, _facts(parts, report_examples))
        write_start(folder, config, start_of_run, record, parts.task.extra_files())

    open_secret(folder, parts.privacy)  # first, because it may refuse the config
    on_first_rank(write)


def _teacher(parts: Parts) -> Teacher | None:
    regularization = parts.regularization
    return regularization.followed if isinstance(regularization, Distillation | EmbeddingDistillation) else None


def task_record(task: Task, pair_separators: int) -> dict[str, Any]:
    """Returns the record of a task, without its config, that evaluation, prediction, export and status need."""
    return {
        **task.to_record(),
        "head": task.head_kind,
        BEST_METRIC: f"val/{task.best_metric}",
        SEPARATORS_KEY: pair_separators,
    }


def prepare_training_texts(parts: Parts, folder: RunFolder, info: ProcessInfo, device_type: str) -> None:
    """Prepares the augmentation before the first step (`prepare_word_samples`). Collective: all ranks must call."""
    device = torch.device(device_type, info.local_rank) if device_type == "cuda" else torch.device(device_type)
    source = parts.sources["train"]
    prepare_word_samples(source, parts.weights, parts.config, parts.tokenizer, folder.path, device)


def build_data(
    settings: TrainConfig, parts: Parts, info: ProcessInfo, device_type: str, has_graphs: bool
) -> EncoderDataModule:
    """Builds the LightningDataModule of a run. Compiled layers and graphs (`has_graphs`) need fixed shapes.

    If `trainer.micro_batch_tokens` is "auto", the callback `AutoBudget` sets the token budget when the model is in
    memory.
    """
    shape = settings.strategy.shape(info.world_size)
    budget = settings.trainer.micro_batch_tokens
    longest = max(source.max_length for source in parts.sources.values())
    data = EncoderDataModule(
        sources=parts.sources,
        seed=settings.seed,
        global_batch_size=parts.token_steps.global_batch_size,
        micro_batch_tokens=longest if budget == "auto" else budget,
        max_steps=parts.max_steps,
        rank=shape.data_parallel_rank(info.rank),
        num_ranks=shape.data_parallel_size,
        wraps_epochs=parts.task.wraps_epochs,
        num_workers=settings.trainer.num_workers,
        batch_warmup=parts.token_steps.batch_warmup,
        shape=shape_on(device_type),
        has_fixed_shapes=has_graphs or settings.strategy.compile != "none",
    )
    if parts.privacy is not None:
        data.sample_privately(parts.privacy.secret)
    data.begin_at(parts.first_step)
    return data


def build_run_trainer(
    run: AssembledRun, info: ProcessInfo, device_type: str, running_plan: RunningPlan | None = None
) -> Trainer:
    """Builds the Trainer for the first phase left of a started run, with its callbacks and, on rank 0, its loggers."""
    phase, folder = run.phases[0], run.folder
    settings, parts = phase.settings, phase.parts
    cadence = Cadence(
        max_steps=parts.max_steps,
        log_every_n_steps=settings.trainer.log_every_n_steps,
        validate_every_n_steps=parts.validate_every_n_steps,
        checkpoint_every_n_steps=settings.trainer.checkpoint_every_n_steps,
        probe_every_n_steps=settings.trainer.probe_every_n_steps,
        run_steps=run.max_steps,
        evaluates_test=settings.trainer.evaluate_test,
    )
    callbacks = standard_callbacks(
        folder.path,
        cadence,
        parts.task,
        retention_of(settings.trainer, parts.task, read_config(folder.path)),
        resume=_resume(settings, folder, phase.phase, parts.first_step),
        loggers=_loggers(settings, folder) if info.rank == 0 else (),
        throughput=Throughput(Timings(), _step_flops(parts), peak_flops(device_type, info.world_size)),
        plan=phase.data.plans["train"],
        timeout_seconds=settings.trainer.timeout_seconds,
        checkpoint_async=settings.trainer.checkpoint_async,
        checkpoints=folder.checkpoints,
        probes=parts.probes,
        endings=Endings(
            settings.trainer.time_limit,
            settings.trainer.non_finite,
            settings.trainer.patience,
            None if settings.trial is None else StudyTrial(Path(settings.trial.folder), settings.trial.number),
        ),
        phase=phase.phase.name,
        running_plan=running_plan,
    )
    return build_trainer(
        build_strategy(
            settings.strategy.name,
            settings.strategy.shape(info.world_size),
            settings.trainer.timeout_seconds,
            device_type,
        ),
        device_type,
        info.local_world_size,
        info.num_nodes,
        cadence.max_steps,
        cadence.validate_every_n_steps,
        [*_first_callbacks(settings, parts, folder, info, device_type, cadence.ends_run), *callbacks],
    )


def _first_callbacks(
    settings: TrainConfig, parts: Parts, folder: RunFolder, info: ProcessInfo, device_type: str, ends_run: bool
) -> list[Callback]:
    """Returns the callbacks that run before the standard ones: reports at the start, and optional callbacks."""
    callbacks: list[Callback] = [DataLines(_facts(parts, settings.trainer.report_examples), folder.path)]
    if settings.trainer.profile is not None:
        callbacks.append(Profile(folder.path, *settings.trainer.profile))
    if settings.trainer.micro_batch_tokens == "auto":
        memory = CudaMemory(torch.device("cuda", info.local_rank)) if device_type == "cuda" else None
        callbacks.append(AutoBudget(memory))
    if device_type == "cuda":
        callbacks.append(AttentionChoice(settings.strategy.attention))
    if parts.weights is not None and folder.checkpoint is None:
        callbacks.append(WeightsLine(describe_start(parts.model, parts.weights)))
    if teacher := describe_teacher(parts.regularization, parts.config):
        callbacks.append(WeightsLine(f"teacher: {teacher}"))
    if settings.trainer.report_examples is not None and ends_run:
        examples, goes_to_wandb = settings.trainer.report_examples, settings.logger.wandb
        explanations = settings.trainer.report_explanations
        callbacks.append(
            ErrorAnalysis(folder.path, parts.tokenizer, examples, goes_to_wandb, num_explanations=explanations)
        )
    return callbacks


def _facts(parts: Parts, report_examples: int | None) -> dict[str, SplitFacts]:
    """Returns the facts about the data. They contain no texts if the report shows no examples."""
    facts = facts_of(parts.sources)
    return facts if report_examples else without_texts(facts)


def _step_flops(parts: Parts) -> Callable[[StepBatch], float] | None:
    """Returns a function that counts FLOPs; None if parameters are frozen: the formula assumes a full backward pass."""
    if not all(parameter.requires_grad for parameter in parts.model.parameters()):
        return None
    config, term, head = parts.config, parts.task.vocabulary_term, parts.model.head

    def count(step: StepBatch) -> float:
        lengths = [length for batch in step.micro_batches for length in batch.lengths[: batch.num_sequences]]
        num_predicted = sum(batch.counts[term] for batch in step.micro_batches) if term is not None else 0.0
        if isinstance(head, RewritingHead):
            generator = training_flops(head.generator_config, lengths, num_predicted)
            return generator + training_flops(config, lengths)
        return training_flops(config, lengths, num_predicted)

    return count


def _resume(settings: TrainConfig, folder: RunFolder, phase: Phase, first_step: int) -> Resume | None:
    if folder.checkpoint is None:
        return None
    # A new folder has no rows yet, even if it resumes from a given checkpoint.
    accepts = settings.run.missing == "accept" or folder.is_new
    begins = PhaseBegin(phase.name, first_step, phase.resets_optimizer) if phase.name and first_step else None
    return Resume(folder.checkpoint, folder.checkpoints, settings.run.verify, folder.falls_back, accepts, begins)


def _loggers(settings: TrainConfig, folder: RunFolder) -> list[Logger]:
    step = 0 if folder.checkpoint is None else step_of(folder.checkpoint)
    wandb = [open_wandb_run(folder.path, settings.logger)] if settings.logger.wandb else []
    return [*wandb, *open_loggers(folder.path, read_config(folder.path), settings.logger, step)]
