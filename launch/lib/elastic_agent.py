"""torchrun as the launchers call it: `python launch/lib/elastic_agent.py [--guest] TORCHRUN_ARGUMENTS`.

- Ranks that ended with an error of configuration or data are not restarted, because the error would recur.
- The last line states the cause, while torch.distributed.run ends with a traceback of its own.
- `--guest`: a host that the others can lose. An agent that ends with an error closes the rendezvous of all hosts (torch
  2.11 to 2.13), even through bytes that a restored link delivers late, and then no host could join. With MIN:MAX hosts
  only the head may close it. A guest just ends, and the others notice its missing heartbeat.
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
"""Exit codes: ranks failed; ranks failed with an error that would recur."""

watch_workers = LocalElasticAgent._monitor_workers


def is_final(failure: ProcessFailure) -> bool:
    """Returns True if the note of the rank (framework.distributed.processes.launcher_note) says so."""
    return bool(failure.error_file_data.get("is_final"))


def watch(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
    """Monitors the ranks like torch, and allows no restart after a final error."""
    result = watch_workers(agent, group)
    if result.state == WorkerState.FAILED and any(is_final(each) for each in result.failures.values()):
        agent._remaining_restarts = 0
    return result


def leave_meeting(_: DynamicRendezvousHandler) -> bool:
    """Replaces closing the rendezvous; the heartbeat ends with the process."""
    return True


def cause(error: ChildFailedError) -> str:
    """Describes the first failure: the error that the rank reported, or how its process ended."""
    rank, failure = error.get_first_failure()
    if failure.error_file_data.get("is_final") is not None:
        return str(failure.message)
    code = failure.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"error: rank {rank} (process {failure.pid}) {how} without reporting an error. See its output above."


def main(arguments: list[str]) -> int:
    """Runs the agent and returns its exit code."""
    LocalElasticAgent._monitor_workers = watch
    if arguments[:1] == ["--guest"]:
        DynamicRendezvousHandler.shutdown = leave_meeting
        arguments = arguments[1:]
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        sys.stderr.write(f"{cause(error)}\n")
        return FINAL if any(is_final(each) for each in error.failures.values()) else FAILED
    except SignalException as error:
        sys.stderr.write(f"error: the agent was stopped by {error.sigval.name} before its ranks had left.\n")
        return 128 + error.sigval
    except (RendezvousError, DistError) as error:
        sys.stderr.write(f"error: the agents did not meet ({type(error).__name__}: {' '.join(str(error).split())}).\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
