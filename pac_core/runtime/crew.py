"""The processes of a run over several devices of one machine: started, connected, and ended with the run."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import TracebackType

import torch

from pac_core.addresses import free_ports, join_address
from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster
from pac_core.contracts.transport import Transport, TransportOptions
from pac_core.control import Purpose
from pac_core.emulated.emulate import emulated
from pac_core.errors import AGAIN, RESUME, BadInput, PeerLost, RunFailed, TransportError
from pac_core.keys import KeyFolder, KeyPair
from pac_core.machine import core_count
from pac_core.planning.make import device_names, local_cluster
from pac_core.registry import Registry
from pac_core.runtime.assignment import Assignment, connect
from pac_core.runtime.job_process import GRACE_SECONDS, JobProcess

END_SECONDS = 300.0

SILENCE_SECONDS = 600.0
"""`Assignment.silence` between processes of one machine, whose ends are noticed at once."""

POLL_SECONDS = 0.02

LOOPBACK = "127.0.0.1"

WAYS_OUT: Mapping[Purpose, str] = {"train": RESUME, "profile": AGAIN}
"""What is to be done about a job that could not go on."""


def device_count(config: RunConfig) -> int:
    """How many processes ``config`` asks for.

    Raises:
        BadInput: it asks for something else than devices of this machine, or they cannot do what it asks.
    """
    count = int(config.devices) if config.devices.isdecimal() else 0
    if count < 1:
        raise BadInput(
            f"--devices {config.devices}: give a number of processes on this machine, or a cluster file, as in "
            "cluster.yaml"
        )
    if count == 1 and config.transport is not None:
        raise BadInput(f"--transport {config.transport}: nothing passes between devices; give --devices 2 or more too")
    return count


def has_stages(config: RunConfig) -> bool:
    """Whether epoch 1 runs by a plan over several devices, rather than on one, or on whole models beside each other."""
    return config.devices != "1" and (config.scheduler is not None or config.plan is not None)


def processes_here(count: int) -> Cluster:
    """``count`` processes of this machine, for planning."""
    return local_cluster(device_names(count), threads_each(count))


def threads_each(count: int) -> int:
    """Compute threads of each of ``count`` processes."""
    return max(core_count() // count, 1)


def make_peers(folder: Path, count: int, new_keys: Callable[[], KeyPair] | None) -> list[tuple[str, str]]:
    """Address and public key of ``count`` processes of this machine: socket files in ``folder`` without keys or, for a
    transport that goes by keys, free ports of the loopback interface, with fresh keys for each process in ``folder``.

    Raises:
        BadInput: keys cannot be made.
    """
    if new_keys is None:
        return [(str(folder / str(rank)), "") for rank in range(count)]
    folders = [KeyFolder(key_folder(folder, rank)) for rank in range(count)]
    keys = [own.make(f"device{rank}", new_keys) for rank, own in enumerate(folders)]
    for own, (rank, key) in product(folders, enumerate(keys)):
        own.allow(key, f"device{rank}", TransportOptions.cluster)
    addresses = [join_address(LOOPBACK, port) for port in free_ports(LOOPBACK, count)]
    return list(zip(addresses, keys))


def key_folder(folder: Path, rank: int) -> Path:
    """Where the keys of a process are."""
    return folder / f"keys{rank}"


class Crew:
    """The other processes of a run that this one leads. While entered they run, and this process computes with as many
    threads as each of them; afterwards none is left, nor any file of theirs.

    Each has a session of its own, so that Ctrl-C reaches this process alone, which decides for all; each ends by itself
    once this process is gone, whose end closes its standard input.
    """

    leads = True
    """Whether this process leads the others."""

    remote = False
    """Whether the devices are other machines."""

    def __init__(self, config: RunConfig, count: int, registry: Registry, purpose: Purpose = "train") -> None:
        self.config = config
        self.purpose = purpose
        self.registry = registry
        self.count = count
        self.folder = Path()
        self._assignments: list[Assignment] = []
        self._processes: dict[int, JobProcess] = {}
        self._transport: Transport | None = None
        self._threads = torch.get_num_threads()

    @property
    def devices(self) -> Cluster:
        """All devices by rank, this one too."""
        return emulated(processes_here(self.count), self.config.emulate)

    def __enter__(self) -> Crew:
        new_keys = getattr(self.registry.get("transports", self.config.transport or "local"), "new_keys", None)
        self.folder = Path(tempfile.mkdtemp(prefix="pac-"))  # for this user alone
        torch.set_num_threads(threads_each(self.count))
        try:
            self._assignments = self._assign(make_peers(self.folder, self.count, new_keys))
            for assignment in self._assignments[1:]:
                self._processes[assignment.rank] = JobProcess(assignment)
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(END_SECONDS if error is None else 0.0)

    def connect(self) -> Transport:
        """Connect with all processes, once each is ready; errors as in `pac_core.runtime.assignment.connect`.

        Raises:
            RunFailed: one has ended instead.
        """
        for rank, process in self._processes.items():
            while not process.ready():
                if process.ended() is not None:
                    raise self.explain(PeerLost(rank, "it ended"))
                time.sleep(POLL_SECONDS)
        self._transport = connect(self._assignments[0], self.registry)
        return self._transport

    def explain(self, error: TransportError) -> RunFailed:
        """``error`` as the user is to read it: which process ended and why, if one did."""
        until = time.monotonic() + 1.0
        while time.monotonic() < until and not self._failed():
            time.sleep(POLL_SECONDS)
        failed = self._failed()
        if not failed:
            return RunFailed(f"{error}; {WAYS_OUT[self.purpose]}")
        rank = min(failed, key=lambda one: failed[one][0] > 0)  # by a signal first: others follow
        return RunFailed(f"lost device {rank}: {failed[rank][1]}; {WAYS_OUT[self.purpose]}")

    def _assign(self, peers: Sequence[Sequence[str]]) -> list[Assignment]:
        config, blocked = self.config.plain(), sorted(self.registry.blocked)
        return [
            Assignment(
                job="",
                config=config,
                rank=rank,
                peers=peers,
                transport=self.config.transport or "local",
                keys=str(key_folder(self.folder, rank)),
                cluster=TransportOptions.cluster,
                threads=threads_each(self.count),
                blocked=blocked,
                silence=SILENCE_SECONDS,
                folder=str(self.folder),
                purpose=self.purpose,
            )
            for rank in range(self.count)
        ]

    def _failed(self) -> dict[int, tuple[int, str]]:
        """Status of each process that has failed, and why, by rank."""
        ends = {rank: process.ended() for rank, process in self._processes.items()}
        return {rank: end for rank, end in ends.items() if end is not None and end[0]}

    def _end(self, patience: float) -> None:
        """Wait ``patience`` seconds for the processes to end, then tell them to, then kill them."""
        try:
            self._await_ends(patience)
            for process in self._processes.values():
                process.stop()
            self._await_ends(GRACE_SECONDS)
        finally:
            for process in self._processes.values():
                process.release()
            if self._transport is not None:
                self._transport.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            torch.set_num_threads(self._threads)

    def _await_ends(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.ended() is None for process in self._processes.values()):
            time.sleep(POLL_SECONDS)
