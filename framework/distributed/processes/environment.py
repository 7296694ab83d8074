"""Rank of this process and name of the run, both from the environment, before any device or group is touched."""

import hashlib
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from framework.errors import ConfigError, DistributedError

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,127}")
"""File names that begin with the run id must stay within 255 bytes, the limit of file systems."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """Ranks of one process and numbers of processes.

    Attributes:
        rank: Rank over all nodes, from 0 to world_size - 1.
        local_rank: Rank on this node, also the index of the device.
        world_size: Number of processes on all nodes.
        local_world_size: Number of processes on this node.
        num_nodes: Number of hosts (torchrun agents).
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def num_nodes(self) -> int:
        """Number of hosts; every host runs the same number of processes."""
        return self.world_size // self.local_world_size


def check_launcher(environ: MutableMapping[str, str]) -> None:
    """Checks the variables of a launcher before anything reads them, and removes empty variables.

    Raises:
        DistributedError: The conditions of `process_info`, or only one of RANK and WORLD_SIZE is set, or a variable
            from which Lightning reads a rank is not a whole number.
    """
    for name in (*_RANK_VARIABLES, "WORLD_SIZE"):
        if not environ.get(name):
            environ.pop(name, None)
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if other in environ and name not in environ:
            raise DistributedError(
                f"{other} is {environ[other]!r}, but {name} is not set. A launcher sets both. Start through torchrun, "
                f"or unset {other}."
            )
    process_info(environ)
    for name in (*_RANK_VARIABLES, "SLURM_NTASKS"):
        if name in environ:
            _whole_number(environ, name, 0)


def process_info(environ: Mapping[str, str] = os.environ) -> ProcessInfo:
    """Reads the variables that torchrun sets. Unless RANK and WORLD_SIZE are both set, this is the only process.

    Lightning (up to 2.6) removes WORLD_SIZE on teardown of a Trainer that torchrun did not start.

    Raises:
        DistributedError: A variable is not a whole number or out of range, or the hosts run different numbers of
            processes.
    """
    if not environ.get("RANK") or not environ.get("WORLD_SIZE"):
        return ProcessInfo()
    world_size = _whole_number(environ, "WORLD_SIZE", 1)
    rank = _whole_number(environ, "RANK", 0, world_size)
    local_world_size = _whole_number(environ, "LOCAL_WORLD_SIZE", 1, world_size + 1, default=world_size)
    if world_size % local_world_size:
        raise DistributedError(
            f"This host runs {local_world_size} of {world_size} processes. Every host must run the same number. Give "
            "each torchrun the same --nproc-per-node."
        )
    local_rank = _whole_number(environ, "LOCAL_RANK", 0, local_world_size, default=rank % local_world_size)
    return ProcessInfo(rank, local_rank, world_size, local_world_size)


def _whole_number(
    environ: Mapping[str, str], name: str, least: int, end: int | None = None, default: int | None = None
) -> int:
    """Reads a launcher variable, a whole number of at least `least` and below `end`."""
    text = environ.get(name)
    if not text and default is not None:
        return default
    value = int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else None
    if value is None or value < least or (end is not None and value >= end):
        bounds = f"from {least} to {end - 1}" if end is not None else f"of at least {least}"
        raise DistributedError(
            f"{name} is {text!r} in the environment. The launcher sets it to a whole number {bounds}. Start through "
            "torchrun, or unset all variables of the launcher to run one process."
        )
    return value


def resolve_run_id(given: str | None, identity: str, environ: Mapping[str, str] = os.environ) -> str:
    """Names a run so that a second start of the same run uses the same folder. The name never contains the time.

    The function uses the first that exists: the given id, the SLURM job id (array jobs: with the task id), the torchrun
    run id if the user gave one, a hash of the config's identity. Without a given id, torchrun generates a version 4
    UUID on one node and uses "none" with a static address. Both are ignored.

    Args:
        given: `run.id` of the config.
        identity: Identity keys of the config in one canonical text.
        environ: Environment variables.

    Raises:
        ConfigError: The given id is not a valid folder name.
    """
    if given is not None:
        if not _RUN_ID.fullmatch(given):
            raise ConfigError(
                f"run.id={given!r} cannot name a folder. At most 128 letters, digits and . _ = , + - are allowed, and "
                "the first must be a letter or digit. Choose an id of this form, or set run.id to null."
            )
        return given
    if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
        return f"slurm-{environ['SLURM_ARRAY_JOB_ID']}-{environ['SLURM_ARRAY_TASK_ID']}"
    if "SLURM_JOB_ID" in environ:
        return f"slurm-{environ['SLURM_JOB_ID']}"
    torchrun_id = environ.get("TORCHELASTIC_RUN_ID", "none")
    if torchrun_id != "none" and not _UUID4.fullmatch(torchrun_id) and _RUN_ID.fullmatch(torchrun_id):
        return f"torchrun-{torchrun_id}"
    return f"config-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
