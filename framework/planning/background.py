"""Plans a training while it runs: `framework.train hardware=NAME`.

Fake ranks must not meet the real process group, and a plan takes seconds to minutes. Rank 0 therefore starts another
process (`python -m framework.planning.background`), which makes the same plan as `framework.plan`. It has the lowest
priority, sees no GPU, and ends with the training, also if that is killed. Its failure is a line and ends no training.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

from framework.callbacks.plan_comparison import PlannedPhase
from framework.config.nodes import Component, check_component
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError, FrameworkError
from framework.planning.hardware import Hardware

_MODULE = "framework.planning.background"
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""Environment of the process. The training has downloaded what the plan reads."""


def plan_of(
    config: Mapping[str, Any], hardware: Component | None, info: ProcessInfo, device_type: str | None
) -> "BackgroundPlan | None":
    """Returns the plan of a training, which is not started yet; None: there is no hardware to plan for.

    Args:
        config: Resolved config of `framework.train`.
        hardware: Device of the config.
        info: This process. Only rank 0 plans.
        device_type: Device of the training; None: it is not known yet, as in a check.

    Raises:
        ConfigError: The hardware is not valid, or is another type of device than that of the training.
    """
    if hardware is None:
        return None
    device: Hardware = hardware.build()
    if device_type not in (None, device.device):
        raise ConfigError(
            f"hardware={device.name} is a {device.device} device, but this run trains on {device_type}. A plan is "
            "compared with the device that it describes. Choose the file of this device, or set hardware=null."
        )
    return BackgroundPlan(json.dumps([dict(config), info.num_nodes, info.local_world_size]), is_made=info.rank == 0)


class BackgroundPlan:
    """Plan of a training, which another process makes within this context.

    Args:
        request: Arguments of `planned_phases` as JSON.
        is_made: False on other ranks than the first, which plan nothing.
    """

    def __init__(self, request: str, is_made: bool) -> None:
        self._request = request
        self._is_made = is_made
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._files = contextlib.ExitStack()
        self._result: dict[str, PlannedPhase] | str | None = None

    def __enter__(self) -> "BackgroundPlan":
        if self._is_made:
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._files.close()

    def poll(self) -> Mapping[str, PlannedPhase] | str | None:
        """Returns the plans by phase, "" without phases; the reason as text if planning failed; None: not finished."""
        if self._result is None and self._process is not None and self._process.poll() is not None:
            assert self._output is not None
            self._output.seek(0)
            self._result = _read(self._output.read().decode(errors="replace"))
        return self._result

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
        try:
            with contextlib.ExitStack() as files:
                request, output = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
                request.write(self._request.encode())
                request.seek(0)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _MODULE, str(os.getpid())],
                    stdin=request,  # a pipe could block this process
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**environment, **_ENVIRONMENT},
                    start_new_session=True,  # Ctrl-C is for the training
                )
                self._output, self._files = output, files.pop_all()
        except OSError as error:
            self._result = f"its process could not be started ({error})"


def _read(output: str) -> dict[str, PlannedPhase] | str:
    """Returns the plans, or the reason for which there are none, from the last line that the process wrote."""
    lines = output.strip().splitlines() or ["its process ended without a result"]
    try:
        phases = json.loads(lines[-1])
        return {name: PlannedPhase(size, (low, mid, high), tokens) for name, (size, (low, mid, high), tokens) in phases}
    except ValueError:
        return lines[-1]


def planned_phases(config: Mapping[str, Any], nodes: int, gpus_per_node: int) -> dict[str, PlannedPhase]:
    """Plans a training as `framework.plan` does.

    Args:
        config: Resolved config of `framework.train`, with the hardware.
        nodes: Number of nodes.
        gpus_per_node: Number of processes on each node.

    Returns:
        Plans by name of the phase; "" if the run has no phases.

    Raises:
        FrameworkError: The training cannot be planned.
    """
    # Imported here because only the process of the plan needs them.
    from framework.planning.estimate import step_time
    from framework.planning.planner import Plan
    from framework.planning.settings import PlanSettings

    hardware = check_component("hardware", config["hardware"])
    # The plan is that of a new run: the folder of this one may have rows and no checkpoint yet.
    run = {**config["run"], "id": f"plan-{os.getpid()}", "resume": "auto"}
    plan = Plan((), {**config, "run": run}, PlanSettings(nodes, gpus_per_node), None, hardware.build())
    planned = {}
    for record in plan.records:
        time = step_time(record, plan.hardware)
        seconds = (time.expected, time.lowest, time.highest)
        planned[record.phase.phase.name or ""] = PlannedPhase(record.step.peak.num_bytes, seconds, record.tokens)
    return planned


def end_with(parent: int) -> None:
    """Ends this process as soon as another process than `parent` is its parent, which means that `parent` has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Writes the plans of the training on standard input to standard output, as one line of JSON.

    The argument is the process id of the training.
    """
    os.nice(19)
    end_with(int(sys.argv[1]))
    try:
        planned = planned_phases(*json.load(sys.stdin))
    except FrameworkError as error:
        sys.stdout.write(" ".join(str(error).split()))
        return
    rows = [(name, (each.memory_bytes, each.step_seconds, each.tokens)) for name, each in planned.items()]
    sys.stdout.write(f"\n{json.dumps(rows)}\n")


if __name__ == "__main__":
    main()
