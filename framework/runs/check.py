"""Describes for `check=true` what `framework.train` would do. No step is trained and no file is written."""

from framework.callbacks.plan_line import MEASURED_STEPS, plan_text
from framework.checkpoint.layout import step_of
from framework.config.phases import LAST_STEP, PHASES
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError, counted
from framework.models.accounting import count_parameters
from framework.published.starting_head import describe_start
from framework.runs.assembled_run import AssembledRun
from framework.runs.build import Parts
from framework.runs.teaching import describe_teacher
from framework.tasks.rewriting import RewritingHead


def planned_process(check: object, info: ProcessInfo) -> ProcessInfo:
    """Returns the process for which a config is checked: this one, or the first of N under `check=N`.

    Args:
        check: Value of the key `check`.
        info: This process.

    Raises:
        ConfigError: N is below 1.
    """
    if not isinstance(check, int) or isinstance(check, bool):
        return info
    if check < 1:
        raise ConfigError(
            f"`check` is {check}. It must be true, false, or the number of processes of the run, at least 1. Use "
            "check=true."
        )
    return ProcessInfo(world_size=check, local_world_size=check)


def describe_run(run: AssembledRun, is_finished: bool, device_type: str) -> list[tuple[str, str]]:
    """Describes the run of a config as rows of (name, text).

    Args:
        run: The run.
        is_finished: True if an earlier start finished the run.
        device_type: Device type of the check, "cpu" or "cuda".
    """
    folder, phase = run.folder, run.phases[0]
    settings, parts, plan = phase.settings, phase.parts, phase.data.plans["train"]
    start = 0 if folder.checkpoint is None else step_of(folder.checkpoint)
    config = parts.config
    rows = [
        ("run folder", f"{folder.path}: {_start(start, is_finished)}"),
        ("task", type(parts.task).__name__),
        (
            "encoder",
            f"{config.family}, {config.num_layers} layers of {config.hidden_size}, "
            f"vocabulary of {config.vocab_size:,}, {count_parameters(config).total:,} parameters",
        ),
        *_generator(parts),
        ("weights", _weights(parts, settings.seed)),
        *([("teacher", teacher)] if (teacher := describe_teacher(parts.regularization, config)) else []),
        *((f"{split} split", f"{len(source):,} sequences") for split, source in parts.sources.items()),
        ("steps", f"{run.max_steps:,}"),
        *_phases(run),
        ("data-parallel ranks", f"{plan.num_ranks:,} under strategy={settings.strategy.name}"),
    ]
    steps = range(start, min(start + MEASURED_STEPS, parts.max_steps))
    if steps and settings.trainer.micro_batch_tokens != "auto":
        rows.append(("plan", plan_text(plan, plan.summary(steps), len(steps), parts.max_steps).removeprefix("plan: ")))
    if phase.graph_obstacle is not None:
        rows.append(("CUDA graphs", f"not used, because {phase.graph_obstacle}"))
    if device_type != "cuda":
        rows.append(("not checked", "memory, precision=float8 and strategy.compile, which need a GPU"))
    return rows


def _generator(parts: Parts) -> list[tuple[str, str]]:
    """Returns the row of an encoder in the head; parameters that it shares with the main encoder do not count."""
    if not isinstance(parts.model.head, RewritingHead):
        return []
    config = parts.model.head.generator_config
    named = parts.model.named_parameters()
    size = sum(parameter.numel() for name, parameter in named if name.startswith("head.generator."))
    layers = counted(config.num_layers, "layer")
    return [("generator", f"{layers} of {config.hidden_size}, {size:,} parameters of its own")]


def _phases(run: AssembledRun) -> list[tuple[str, str]]:
    phases = run.configs[0].get(PHASES) or {}
    lengths = [f"{name} up to step {each[LAST_STEP]:,}" for name, each in phases.items()]
    return [("phases", ", ".join(lengths))] if lengths else []


def _start(step: int, is_finished: bool) -> str:
    if is_finished:
        return "already finished, nothing would be trained"
    return f"would resume from step {step:,}" if step else "would start at step 0"


def _weights(parts: Parts, seed: int) -> str:
    if parts.weights is None:
        return f"fresh from seed {seed}"
    return describe_start(parts.model, parts.weights).removeprefix("weights from ")
