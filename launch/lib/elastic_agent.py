"""Runs torchrun for the launchers: `python launch/lib/elastic_agent.py [--guest] TORCHRUN_ARGUMENTS`.

- Ranks that ended with an error of configuration or data are not restarted, because the error would recur.
- The last line states the cause. torch.distributed.run would end with its own traceback.
- `--guest` marks a host that the others can lose. An agent that ends with an error closes the rendezvous of all hosts
  (torch 2.11 to 2.13), even through bytes that a restored link delivers late, and then no host can join. With MIN:MAX
  hosts only the head may close it. A guest exits, and the others notice its missing heartbeat.
"""

import signal
import sys

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.run import parse_args, run

FAILED, FINAL = 1, 2
"""Exit codes after a failure of ranks, and after a failure with an error that would recur."""

watch_workers = LocalElasticAgent._monitor_workers


def is_final(failure: ProcessFailure) -> bool:
    """Returns True if the note of the rank (framework.distributed.processes.launcher_note) marks its error as final."""
    return bool(failure.error_file_data.get("is_final"))


def watch(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
    """Monitors the ranks like torch, and forbids restarts after a final error."""
    result = watch_workers(agent, group)
    if result.state == WorkerState.FAILED and any(is_final(each) for each in result.failures.values()):
        agent._remaining_restarts = 0
    return result


def keep_rendezvous_open(_: DynamicRendezvousHandler) -> bool:
    """Replaces the shutdown of the rendezvous. The heartbeat ends with the process."""
    return True


def cause(error: ChildFailedError) -> str:
    """Describes the first failure: the error that the rank reported, or how its process ended."""
    rank, failure = error.get_first_failure()
    if failure.error_file_data.get("is_final") is not None:
        return str(failure.message)
    code = failure.exitcode
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"error: Rank {rank} (process {failure.pid}) {end} without reporting an error. See its output above."


def main(arguments: list[str]) -> int:
    """Runs the agent and returns its exit code."""
    LocalElasticAgent._monitor_workers = watch
    if arguments[:1] == ["--guest"]:
        DynamicRendezvousHandler.shutdown = keep_rendezvous_open
        arguments = arguments[1:]
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        sys.stderr.write(f"{cause(error)}\n")
        return FINAL if any(is_final(each) for each in error.failures.values()) else FAILED
    except SignalException as error:
        sys.stderr.write(f"error: {error.sigval.name} stopped the agent before its ranks had exited.\n")
        return 128 + error.sigval
    except (RendezvousError, DistError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        sys.stderr.write(f"error: The rendezvous of the agents failed ({reason}). Check that all hosts were started.\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
