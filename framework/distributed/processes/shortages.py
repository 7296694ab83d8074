"""Explanations for errors of the machine: exhausted memory, and loader processes that the system killed.

Torch raises them as RuntimeError anywhere in the main thread, so they cannot be caught at one point. Classes of torch
are recognized by name, because commands without torch report errors too.
"""

import errno
import re

from framework.errors import ResourceError

_LOADER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*)|exited)")
_NO_HOST_MEMORY = re.compile(r"DefaultCPUAllocator|can't allocate memory|Cannot allocate memory|std::bad_alloc")
_MAX_CHARACTERS = 200


def is_kind(error: BaseException, module: str, name: str) -> bool:
    """Returns True if the error is of a class with this module and name; the module need not be imported."""
    return any((each.__module__, each.__name__) == (module, name) for each in type(error).__mro__)


def explain(error: BaseException) -> BaseException:
    """Returns a ResourceError if the machine ran out of a resource; any other error unchanged."""
    text = " ".join(str(error).split())
    died = _LOADER_DIED.search(text) if isinstance(error, RuntimeError) else None
    if died is not None:
        return ResourceError(_loader_message(died[1], died[2]))
    if is_kind(error, "torch", "OutOfMemoryError"):
        return ResourceError(
            f"the GPU has no memory left ({text[:_MAX_CHARACTERS]}). A forward and backward pass of one micro-batch "
            "must fit. Lower micro_batch_tokens (in training trainer.micro_batch_tokens; auto selects what fits)."
        )
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if (
        no_memory
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and _NO_HOST_MEMORY.search(text))
    ):
        return ResourceError(
            f"the host has no memory left ({text[:_MAX_CHARACTERS] or type(error).__name__}). All processes and their "
            "loaders share it. Lower micro_batch_tokens or trainer.num_workers, start fewer processes, or "
            "request more memory."
        )
    return error


def _loader_message(pids: str, signal: str | None) -> str:
    if signal is not None and signal.startswith("Bus error"):
        return (
            f"a loader process (pid {pids}) ended by a bus error. Loader processes pass batches through "
            "/dev/shm, which is full. Enlarge it (docker run --shm-size=8g), or set trainer.num_workers=0."
        )
    how = f"was killed by signal: {signal}" if signal is not None else "ended without a message"
    return (
        f"a loader process (pid {pids}) {how}. The system kills processes when memory runs out. Lower "
        "trainer.num_workers or request more memory, and start again: the run resumes from its newest checkpoint."
    )
