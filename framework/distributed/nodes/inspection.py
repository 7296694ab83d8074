"""Inspects all nodes before a training: which ranks are present, the resources of each node, the links between nodes.

Ranks exchange reports through a store, never by a collective of all ranks. So the others can report a dead node.
"""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from framework.distributed.nodes.links import measure_all_reduce, measure_link, rounds
from framework.distributed.nodes.report import MEGABYTE, SILENT, Link, RankFacts, Report
from framework.distributed.processes.environment import ProcessInfo
from framework.distributed.processes.meeting_point import meeting_point
from framework.distributed.processes.process_group import attempt_prefix
from framework.errors import DistributedError

_LINK_BYTES = 16 * MEGABYTE
_FILE_SECONDS = 10.0
"""Time in which a rank must see the file that rank 0 wrote; network file systems show new files late."""


def node_name() -> str:
    """Returns SLURM's name of this node, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_facts(info: ProcessInfo, folder: Path) -> RankFacts:
    """Returns the report of this process about its node. Creates the folder if it does not exist."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu, free = None, 0
    if info.local_rank < num_gpus:
        gpu = torch.cuda.get_device_name(info.local_rank)
        free = torch.cuda.mem_get_info(info.local_rank)[0]
    disk = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder).free
    except OSError:
        pass  # None in the report
    return RankFacts(info.rank, node_name(), gpu, num_gpus, free, disk)


def open_store(info: ProcessInfo, seconds: float) -> Store:
    """Opens the store of all ranks, which rank 0 or torchrun's agent hosts.

    Raises:
        DistributedError: This node cannot reach the store.
    """
    if info.world_size == 1:
        return HashStore()
    return _connect(seconds, info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")


def _connect(seconds: float, is_master: bool) -> Store:
    address, port = meeting_point()
    limit = timedelta(seconds=seconds)
    try:
        # Rank 0 must not wait for the others, because it reports those that are missing.
        store = TCPStore(address, port, is_master=is_master, timeout=limit, wait_for_workers=False)
    except RuntimeError as error:
        raise DistributedError(
            f"{node_name()} did not reach {address}:{port} within {seconds:g} s. All ranks must connect to this store. "
            "Check the network of the node, or exclude it."
        ) from error
    return PrefixStore(f"preflight/{attempt_prefix()}", store)


class Inspection:
    """Inspection of all nodes. Collective: each rank builds one and calls `run`."""

    def __init__(
        self,
        store: Store,
        info: ProcessInfo,
        folder: Path,
        sizes: Sequence[int],
        seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Stores the settings of the inspection.

        Args:
            store: Store of all ranks.
            info: Rank, local rank and world size of this process.
            folder: Folder that all nodes must share.
            sizes: Sizes of the all-reduces in bytes.
            seconds: Time limit of each measurement in seconds.
            clock: Function that returns the time of this node in seconds.
        """
        self.store, self.info, self.folder = store, info, folder
        self.sizes, self.seconds, self.clock = sizes, seconds, clock
        self.report = Report()

    def run(self) -> Report:
        """Runs all measurements, or those before the first serious fault. Only rank 0 gets the full report.

        Raises:
            DistributedError: Rank 0 does not answer.
        """
        self._publish(f"facts/{self.info.rank}", asdict(rank_facts(self.info, self.folder)))
        if self.info.rank == 0:
            reports = self._collect("facts", range(self.info.world_size))
            self.report.facts = [RankFacts(**each) for each in reports.values()]
            self.report.missing = [rank for rank in range(self.info.world_size) if rank not in reports]
            firsts = [facts[0].rank for facts in self.report.nodes.values()]
            is_on_gpus = all(each.gpu is not None for each in self.report.facts)
            self._publish("plan", {"go": not self.report.missing, "firsts": firsts, "gpus": is_on_gpus})
        plan = self._receive("plan", 2)
        if plan["go"]:
            device = torch.device("cuda", self.info.local_rank) if plan["gpus"] else torch.device("cpu")
            self._check_shared_folder()
            self._measure_links(plan["firsts"], device)
            if self._agree_on("links", lambda: all(link.why is None for link in self.report.links.values())):
                self._measure_all_reduce(device)
        return self.report

    def agree(self, code: int) -> int:
        """Returns the exit code of rank 0 on all ranks. Rank 0 waits briefly until the others have received it.

        Args:
            code: Exit code on rank 0; ignored on other ranks.
        """
        if self.info.rank == 0:
            self._publish("verdict", code)
            others = [rank for rank in range(1, self.info.world_size) if rank not in self.report.missing]
            self._collect("left", others, min(self.seconds, 10.0))
            return code
        verdict = int(self._receive("verdict", 5))
        self._publish(f"left/{self.info.rank}", True)
        return verdict

    def _check_shared_folder(self) -> None:
        """Writes a random token to a file on rank 0, and reads it on all ranks."""
        path = self.folder / ".preflight"
        if self.info.rank == 0:
            token = secrets.token_hex(16)
            try:
                path.write_text(token, encoding="utf-8")
            except OSError:
                token += " could not be written"
            self._publish("token", token)
        token = self._receive("token", 2)
        deadline = time.monotonic() + min(self.seconds, _FILE_SECONDS)
        while not (is_seen := _contains(path, token)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._publish(f"seen/{self.info.rank}", is_seen)
        if self.info.rank == 0:
            reports = self._collect("seen", range(self.info.world_size))
            self.report.blind = [rank for rank in range(self.info.world_size) if not reports.get(rank)]
            path.unlink(missing_ok=True)
        # Synchronize: ranks that do not see the file arrive later.
        self._agree_on("share", lambda: True)

    def _measure_links(self, firsts: list[int], device: torch.device) -> None:
        """Measures each pair of nodes once, between the first ranks of the nodes. Other ranks wait."""
        for number, pairs in enumerate(rounds(len(firsts))):
            for one, other in pairs:
                ranks = (firsts[one], firsts[other])
                if self.info.rank in ranks:
                    store = PrefixStore(f"link/{one}-{other}", _connect(self.seconds, False))
                    rank = ranks.index(self.info.rank)
                    link = measure_link(store, rank, device, _LINK_BYTES, self.seconds, self.clock)
                    self._publish(f"link/{number}/{self.info.rank}", asdict(link))
            if self.info.rank == 0:
                reports = self._collect(
                    f"link/{number}", [firsts[one] for pair in pairs for one in pair], 2 * self.seconds
                )
                for pair in pairs:
                    self._record_link([firsts[one] for one in pair], reports)
                self._publish(f"round/{number}", True)
            self._receive(f"round/{number}", 3)

    def _record_link(self, ranks: list[int], reports: dict[int, Any]) -> None:
        nodes = {each.rank: each.node for each in self.report.facts}
        links = [Link(**reports[rank]) if rank in reports else Link(None, None, SILENT) for rank in ranks]
        dead = next((link for link in links if link.why is not None), None)
        self.report.links[nodes[ranks[0]], nodes[ranks[1]]] = dead or links[0]

    def _measure_all_reduce(self, device: torch.device) -> None:
        if self.info.world_size == 1:
            return
        store, message, order = PrefixStore("all", _connect(self.seconds, False)), "", 0
        try:
            speeds = measure_all_reduce(store, self.info.rank, self.info.world_size, device, self.sizes, self.seconds)
            self.report.all_reduce = speeds
        except DistributedError as error:
            message, order = str(error), self.store.add("failures", 1)
        self._publish(f"reduced/{self.info.rank}", [order, message])
        if self.info.rank == 0:
            reports = self._collect("reduced", range(self.info.world_size), 2 * self.seconds)
            ends = {rank: tuple(reports.get(rank, (-1, SILENT))) for rank in range(self.info.world_size)}
            failed = sorted(rank for rank in ends if ends[rank][1])
            self.report.stuck = {rank: ends[rank][1] for rank in sorted(failed, key=lambda rank: ends[rank][0])}

    def _agree_on(self, name: str, condition: Callable[[], bool]) -> bool:
        """Returns the value of a condition on rank 0, on all ranks."""
        if self.info.rank == 0:
            self._publish(f"go/{name}", condition())
        return bool(self._receive(f"go/{name}", 3))

    def _publish(self, name: str, value: object) -> None:
        self.store.set(name, json.dumps(value))

    def _receive(self, name: str, times: int) -> Any:
        """Returns a value that rank 0 publishes; waits up to `times` times the limit of one measurement."""
        try:
            self.store.wait([name], timedelta(seconds=times * self.seconds + _FILE_SECONDS))
            return json.loads(self.store.get(name))
        except RuntimeError as error:
            raise DistributedError(
                f"{node_name()} received no answer from the first node ({error}). Check the first node and its network."
            ) from error

    def _collect(self, name: str, ranks: Sequence[int], seconds: float | None = None) -> dict[int, Any]:
        """Returns the values that ranks published, by rank, without ranks that did not answer in time."""
        deadline = time.monotonic() + (self.seconds if seconds is None else seconds)
        values: dict[int, Any] = {}
        while len(values) < len(ranks):
            for rank in ranks:
                if rank not in values and self.store.check([f"{name}/{rank}"]):
                    values[rank] = json.loads(self.store.get(f"{name}/{rank}"))
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return dict(sorted(values.items()))


def _contains(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False
