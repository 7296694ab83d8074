"""torchrun as the launchers call it: `python launch/agent.py [--guest] TORCHRUN_ARGUMENTS`.

- Ranks that ended with an error of configuration or data are not started again: it would come back each time.
- The last line is the cause, where torch.distributed.run ends with a traceback of its own.
- `--guest`: a host that the others can do without. An agent that ends with an error closes the meeting of all hosts as
  its last act (torch 2.11 to 2.13), also by bytes that a cut link delivers when it is back: nobody could join any more.
  With MIN:MAX hosts only the head may do that. A guest just ends, and is missed after its last beat.
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
"""Exit codes: ranks failed; with an error that a new start would meet again."""

watch_workers = LocalElasticAgent._monitor_workers


def is_final(failure: ProcessFailure) -> bool:
    """Returns True where the rank's own note (framework.distributed.processes.launcher_note) says so."""
    return bool(failure.error_file_data.get("is_final"))


def watch(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
    """Looks at the ranks as torch does; allows no further start after a final error."""
    result = watch_workers(agent, group)
    if result.state == WorkerState.FAILED and any(is_final(each) for each in result.failures.values()):
        agent._remaining_restarts = 0
    return result


def leave_meeting(_: DynamicRendezvousHandler) -> bool:
    """Takes the place of closing the meeting; the beats end with the process."""
    return True


def cause(error: ChildFailedError) -> str:
    """Describes the first failure: the error that the rank named, or the way its process ended."""
    rank, failure = error.get_first_failure()
    if failure.error_file_data.get("is_final") is not None:
        return str(failure.message)
    code = failure.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"error: rank {rank} (process {failure.pid}) {how} and named no error. Its output stands above."


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
