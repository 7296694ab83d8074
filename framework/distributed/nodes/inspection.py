"""All nodes looked at before they work together: who is there, what each has, what is between them.

Everything is told through a store, never by a collective of all: where one node is dead, the others still say so.
"""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from framework.distributed.nodes.links import MEGABYTE, Link, measure_all_reduce, measure_link, rounds
from framework.distributed.processes.environment import ProcessInfo
from framework.distributed.processes.meeting_point import meeting_point
from framework.distributed.processes.process_group import attempt_prefix
from framework.errors import DistributedError

_LINK_BYTES = 16 * MEGABYTE
_FILE_SECONDS = 10.0
"""How long a rank looks for what rank 0 wrote; network file systems show new files late."""

SILENT = "it said nothing"


@dataclass(frozen=True)
class RankFacts:
    """What one process says of its node.

    Attributes:
        rank: Of the process.
        node: SLURM's name of it, or its host name.
        gpu: Name of the process's GPU; None: it has none.
        num_gpus: That it sees.
        free_gpu_bytes: Of its GPU.
        free_disk_bytes: Of the folder's disk; None: the folder cannot be made or seen.
    """

    rank: int
    node: str
    gpu: str | None
    num_gpus: int
    free_gpu_bytes: int
    free_disk_bytes: int | None


@dataclass
class Report:
    """What rank 0 has heard.

    Attributes:
        facts: Of the ranks that came, in their order.
        missing: Ranks that did not.
        blind: Ranks that do not see what rank 0 wrote into the folder.
        links: Between nodes.
        all_reduce: MB/s by bytes.
        stuck: Ranks that did not end the all-reduces and what they said; first those that said nothing, then in the
            order in which they failed.
    """

    facts: list[RankFacts] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    blind: list[int] = field(default_factory=list)
    links: dict[tuple[str, str], Link] = field(default_factory=dict)
    all_reduce: dict[int, float] = field(default_factory=dict)
    stuck: dict[int, str] = field(default_factory=dict)

    @property
    def nodes(self) -> dict[str, list[RankFacts]]:
        """The facts by node, in the order of ranks."""
        found: dict[str, list[RankFacts]] = {}
        for each in self.facts:
            found.setdefault(each.node, []).append(each)
        return found


def node_name() -> str:
    """SLURM's name of this node, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_facts(info: ProcessInfo, folder: Path) -> RankFacts:
    """What this process says of its node; makes the folder where it is not there."""
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
        pass  # told by None
    return RankFacts(info.rank, node_name(), gpu, num_gpus, free, disk)


def open_store(info: ProcessInfo, seconds: float) -> Store:
    """Where all ranks meet; rank 0 keeps it, or torchrun's agent.

    Raises:
        DistributedError: This node does not reach it.
    """
    if info.world_size == 1:
        return HashStore()
    return _connect(seconds, info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")


def _connect(seconds: float, is_master: bool) -> Store:
    address, port = meeting_point()
    limit = timedelta(seconds=seconds)
    try:
        # Rank 0 must not wait for all: it is to say who has not come.
        store = TCPStore(address, port, is_master=is_master, timeout=limit, wait_for_workers=False)
    except RuntimeError as error:
        raise DistributedError(
            f"{node_name()} does not reach {address}:{port}, where all meet, within {seconds:g} s; look at its "
            "network, or leave the node out."
        ) from error
    return PrefixStore(f"preflight/{attempt_prefix()}", store)


class Inspection:
    """One look at all nodes; each rank makes one and calls `run`."""

    def __init__(
        self,
        store: Store,
        info: ProcessInfo,
        folder: Path,
        sizes: Sequence[int],
        seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Takes what is looked at.

        Args:
            store: That all ranks see.
            info: This process.
            folder: That all nodes are to share.
            sizes: Of the all-reduces, in bytes.
            seconds: How long each thing may take.
            clock: Tells the time of this node, in seconds.
        """
        self.store, self.info, self.folder = store, info, folder
        self.sizes, self.seconds, self.clock = sizes, seconds, clock
        self.report = Report()

    def run(self) -> Report:
        """Looks, until all is known or going on makes no sense; rank 0 gets the whole report.

        Raises:
            DistributedError: Rank 0 is gone.
        """
        self._tell(f"facts/{self.info.rank}", asdict(rank_facts(self.info, self.folder)))
        if self.info.rank == 0:
            told = self._collect("facts", range(self.info.world_size))
            self.report.facts = [RankFacts(**each) for each in told.values()]
            self.report.missing = [rank for rank in range(self.info.world_size) if rank not in told]
            firsts = [facts[0].rank for facts in self.report.nodes.values()]
            is_on_gpus = all(each.gpu is not None for each in self.report.facts)
            self._tell("plan", {"go": not self.report.missing, "firsts": firsts, "gpus": is_on_gpus})
        plan = self._hear("plan", 2)
        if plan["go"]:
            device = torch.device("cuda", self.info.local_rank) if plan["gpus"] else torch.device("cpu")
            self._share()
            self._measure_links(plan["firsts"], device)
            if self._go_on("links", lambda: all(link.why is None for link in self.report.links.values())):
                self._reduce(device)
        return self.report

    def agree(self, code: int) -> int:
        """The exit code of rank 0, on all; rank 0 waits a little until the others have it.

        Args:
            code: Of rank 0; others give any.
        """
        if self.info.rank == 0:
            self._tell("verdict", code)
            others = [rank for rank in range(1, self.info.world_size) if rank not in self.report.missing]
            self._collect("left", others, min(self.seconds, 10.0))
            return code
        verdict = int(self._hear("verdict", 5))
        self._tell(f"left/{self.info.rank}", True)
        return verdict

    def _share(self) -> None:
        """Rank 0 writes a random word, all look for it."""
        path = self.folder / ".preflight"
        if self.info.rank == 0:
            word = secrets.token_hex(16)
            try:
                path.write_text(word, encoding="utf-8")
            except OSError:
                word += " could not be written"
            self._tell("word", word)
        word = self._hear("word", 2)
        deadline = time.monotonic() + min(self.seconds, _FILE_SECONDS)
        while not (seen := _reads(path, word)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._tell(f"seen/{self.info.rank}", seen)
        if self.info.rank == 0:
            told = self._collect("seen", range(self.info.world_size))
            self.report.blind = [rank for rank in range(self.info.world_size) if not told.get(rank)]
            path.unlink(missing_ok=True)
        # Together from here on: those that looked in vain come later than others.
        self._go_on("share", lambda: True)

    def _measure_links(self, firsts: list[int], device: torch.device) -> None:
        """Each two nodes once, by their first ranks; the others wait."""
        for number, pairs in enumerate(rounds(len(firsts))):
            for one, other in pairs:
                ranks = (firsts[one], firsts[other])
                if self.info.rank in ranks:
                    place = ranks.index(self.info.rank)
                    store = PrefixStore(f"link/{one}-{other}", _connect(self.seconds, False))
                    link = measure_link(store, place, device, _LINK_BYTES, self.seconds, self.clock)
                    self._tell(f"link/{number}/{self.info.rank}", asdict(link))
            if self.info.rank == 0:
                told = self._collect(
                    f"link/{number}", [firsts[one] for pair in pairs for one in pair], 2 * self.seconds
                )
                for pair in pairs:
                    self._note_link([firsts[one] for one in pair], told)
                self._tell(f"round/{number}", True)
            self._hear(f"round/{number}", 3)

    def _note_link(self, ranks: list[int], told: dict[int, Any]) -> None:
        nodes = {each.rank: each.node for each in self.report.facts}
        links = [Link(**told[rank]) if rank in told else Link(None, None, SILENT) for rank in ranks]
        dead = next((link for link in links if link.why is not None), None)
        self.report.links[nodes[ranks[0]], nodes[ranks[1]]] = dead or links[0]

    def _reduce(self, device: torch.device) -> None:
        if self.info.world_size == 1:
            return
        store, said, order = PrefixStore("all", _connect(self.seconds, False)), "", 0
        try:
            speeds = measure_all_reduce(store, self.info.rank, self.info.world_size, device, self.sizes, self.seconds)
            self.report.all_reduce = speeds
        except DistributedError as error:
            said, order = str(error), self.store.add("failures", 1)
        self._tell(f"reduced/{self.info.rank}", [order, said])
        if self.info.rank == 0:
            told = self._collect("reduced", range(self.info.world_size), 2 * self.seconds)
            ends = {rank: tuple(told.get(rank, (-1, SILENT))) for rank in range(self.info.world_size)}
            failed = sorted(rank for rank in ends if ends[rank][1])
            self.report.stuck = {rank: ends[rank][1] for rank in sorted(failed, key=lambda rank: ends[rank][0])}

    def _go_on(self, name: str, condition: Callable[[], bool]) -> bool:
        """What rank 0 finds, on all."""
        if self.info.rank == 0:
            self._tell(f"go/{name}", condition())
        return bool(self._hear(f"go/{name}", 3))

    def _tell(self, name: str, value: object) -> None:
        self.store.set(name, json.dumps(value))

    def _hear(self, name: str, times: int) -> Any:
        """What rank 0 tells; waits for `times` as long as one thing may take."""
        try:
            self.store.wait([name], timedelta(seconds=times * self.seconds + _FILE_SECONDS))
            return json.loads(self.store.get(name))
        except RuntimeError as error:
            raise DistributedError(f"{node_name()} hears nothing of the first node any more ({error}).") from error

    def _collect(self, name: str, ranks: Sequence[int], seconds: float | None = None) -> dict[int, Any]:
        """What ranks tell, by rank; those that are silent are left out."""
        deadline = time.monotonic() + (self.seconds if seconds is None else seconds)
        told: dict[int, Any] = {}
        while len(told) < len(ranks):
            for rank in ranks:
                if rank not in told and self.store.check([f"{name}/{rank}"]):
                    told[rank] = json.loads(self.store.get(f"{name}/{rank}"))
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return dict(sorted(told.items()))


def _reads(path: Path, word: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == word
    except OSError:
        return False
