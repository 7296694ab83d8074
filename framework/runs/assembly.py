"""Assembles a run from its config: checks and builds all parts before a device or another process is involved."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from framework.config.checks import check_device, check_profile, obstacle_to_graphs
from framework.config.phases import LAST_STEP, Phase, check_phases, naming_phase, phase_configs, with_results
from framework.config.secrets import masked
from framework.distributed.parallel.compile import resolve_compile
from framework.distributed.parallel.precision import resolve_precision
from framework.distributed.processes.environment import ProcessInfo
from framework.modules.passes.captured import CudaGraphs
from framework.modules.passes.distillation import Distillation
from framework.privacy.secret import SECRET_BYTES
from framework.runs.assembled_run import AssembledPhase, AssembledRun
from framework.runs.build import Parts, build_module, build_parts, build_settings
from framework.runs.folder import find_run_folder
from framework.runs.session import as_run, build_data
from framework.tracking.loggers import check_loggers


def assemble_run(
    config: Mapping[str, Any], info: ProcessInfo, device_type: str, composed: DictConfig | None = None
) -> AssembledRun:
    """Checks every key, reads every file, and checks the parts against each other. Nothing is written.

    Args:
        config: Composed config in plain containers, interpolations resolved.
        info: This process. With `check=N` it represents one of N processes that do not exist.
        device_type: "cpu" or "cuda".
        composed: Config before interpolations were resolved, used to mask secrets from the environment; None if the
            config is not saved.

    Raises:
        FrameworkError: The config cannot be run.
    """
    saved = config if composed is None else masked(composed, config)
    phases: list[AssembledPhase] = []
    for (phase, its_config), (_, its_saved) in zip(phase_configs(config), phase_configs(saved), strict=True):
        earlier = phases[-1].parts if phases else None
        with naming_phase(phase):
            phases.append(_assemble_phase(phase, its_config, its_saved, info, device_type, earlier))
    check_profile(phases[-1].settings.trainer, phases[-1].parts.max_steps)
    shapes = [{name: tuple(weight.shape) for name, weight in each.parts.model.named_parameters()} for each in phases]
    check_phases(shapes, [each.config for each in phases])
    results = {each.phase.name: {"model": each.config["model"], LAST_STEP: each.parts.max_steps} for each in phases}
    recorded = tuple(replace(each, config=with_results(each.config, results)) for each in phases)
    configs = tuple(each.config for each in recorded)
    folder = find_run_folder(phases[0].settings.run, configs)
    return AssembledRun(recorded, configs, phases[-1].parts.max_steps, folder).from_step_in(folder)


def _assemble_phase(
    phase: Phase,
    config: Mapping[str, Any],
    saved: Mapping[str, Any],
    info: ProcessInfo,
    device_type: str,
    earlier: Parts | None,
) -> AssembledPhase:
    """Assembles a phase from its config, and its record from the same config with masked secrets."""
    settings = build_settings(config, info.world_size)
    settings = replace(settings, seed=phase.seed(settings.seed))
    scaling = settings.precision
    precision = resolve_precision(scaling.name, device_type, scaling.init_scale, scaling.growth_interval)
    if device_type == "cuda" or not settings.check:
        check_device(settings, precision, device_type)
    check_loggers(settings.logger)
    parts = build_parts(settings, info.world_size, earlier)
    strategy = settings.strategy
    # Norms of units, and a distillation that compares layers, need the modules of each layer.
    shows_layers = isinstance(parts.regularization, Distillation) and parts.regularization.reads_layers
    backend = resolve_compile(
        "none" if parts.privacy is not None or shows_layers else strategy.compile,
        device_type,
        precision,
        strategy.name,
        saves_memory=strategy.activation_checkpointing.mode != "none",
        pretrains=parts.task.wraps_epochs and parts.config.relative_bias == "none",
    )
    settings = replace(settings, strategy=replace(strategy, compile=backend))
    if parts.privacy is not None:  # examples are texts
        settings = replace(settings, trainer=replace(settings.trainer, report_examples=None))
        if settings.check:  # a check has no run folder, and its samples are never trained on
            parts.privacy.secret.set(bytes(SECRET_BYTES))
    asks_for_graphs = device_type == "cuda" and settings.strategy.graph
    facts = settings, precision, parts.config, parts.task, parts.sources, info.world_size
    obstacle = obstacle_to_graphs(*facts) if asks_for_graphs else None
    has_graphs = asks_for_graphs and obstacle is None
    data = build_data(settings, parts, info, device_type, has_graphs)
    module = build_module(settings, parts, precision, device_type)
    module.build_graphs = CudaGraphs if has_graphs else None
    recorded = as_run(saved, parts, precision, backend)
    return AssembledPhase(phase, recorded, settings, parts, data, module, obstacle)
