"""The processes of a run over several devices of one machine: started, connected, and ended with the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pac_core.addresses import free_ports, join_address
from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.errors import BadInput, PeerLost, RunFailed, TransportError
from pac_core.keys import KeyFolder, KeyPair
from pac_core.planning.make import device_names, local_cluster
from pac_core.registry import Registry
from pac_core.runtime.job import PATIENCE

READY = b"ready\n"
"""What a process writes to its standard output once it has loaded and is about to connect."""

GRACE_SECONDS = 3.0
"""How long a process may take to end when it is told to, before it is killed."""

END_SECONDS = 300.0

SILENCE_SECONDS = 600.0

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Post:
    """What a process is told, as a line of JSON on its standard input.

    Attributes:
        config: `RunConfig.plain`.
        rank: number of the device that it is.
        folder: of the run, for what passes between its processes.
        peers: address and public key of every device, by rank.
        threads: for computing.
        blocked: plugins to leave out.
    """

    config: Mapping[str, Any]
    rank: int
    folder: str
    peers: Sequence[Sequence[str]]
    threads: int
    blocked: tuple[str, ...] = ()


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // count, 1)


def connect(post: Post, transport: str | None, registry: Registry) -> Transport:
    """Connect with the other devices; returns once all are there.

    Args:
        transport: registered name; ``local`` if None.

    Raises:
        UnknownPlugin, Refused, TransportTimeout: as the transport contract says.
    """
    options = TransportOptions(
        rank=post.rank,
        peers=[Peer(address, key) for address, key in post.peers],
        terms={"pac": metadata.version("pac-core")},
        keys=key_folder(Path(post.folder), post.rank),
        timeout=PATIENCE,
        silence=SILENCE_SECONDS,
    )
    made: Transport = registry.get("transports", transport or "local")(options)
    return made


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

    def __init__(self, config: RunConfig, count: int, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.count = count
        self.folder = Path()
        self._posts: list[Post] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._transport: Transport | None = None
        self._threads = torch.get_num_threads()

    @property
    def devices(self) -> Cluster:
        """All devices by rank, this one too."""
        return processes_here(self.count)

    def __enter__(self) -> Crew:
        new_keys = getattr(self.registry.get("transports", self.config.transport or "local"), "new_keys", None)
        self.folder = Path(tempfile.mkdtemp(prefix="pac-"))  # for this user alone
        torch.set_num_threads(threads_each(self.count))
        try:
            self._posts = self._make_posts(make_peers(self.folder, self.count, new_keys))
            for post in self._posts[1:]:
                self._processes[post.rank] = self._start(post)
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(END_SECONDS if error is None else 0.0)

    def connect(self) -> Transport:
        """Connect with all processes, once each is ready; errors as in `connect`.

        Raises:
            RunFailed: one has ended instead.
        """
        for rank, process in self._processes.items():
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise self.explain(PeerLost(rank, "it ended"))
        self._transport = connect(self._posts[0], self.config.transport, self.registry)
        return self._transport

    def explain(self, error: TransportError) -> RunFailed:
        """``error`` as the user is to read it: which process ended and why, if one did."""
        until = time.monotonic() + 1.0
        while time.monotonic() < until and not self._ended():
            time.sleep(0.02)
        causes = sorted(self._ended().items(), key=lambda found: found[1] > 0)  # by a signal first: others follow
        text = str(error)
        if causes:
            rank, code = causes[0]
            why = f"it was ended by {signal.Signals(-code).name}" if code < 0 else self._last_words(rank)
            text = f"lost device {rank}: {why or f'it ended with status {code}'}"
        return RunFailed(f"{text}; what was written is whole, and the same command with --resume goes on from there")

    def _make_posts(self, peers: Sequence[Sequence[str]]) -> list[Post]:
        config, blocked = self.config.plain(), tuple(sorted(self.registry.blocked))
        folder, threads = str(self.folder), threads_each(self.count)
        return [Post(config, rank, folder, peers, threads, blocked) for rank in range(self.count)]

    def _start(self, post: Post) -> subprocess.Popen[bytes]:
        threads = str(post.threads)
        safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]  # import from here only if this process does
        with open(self._errors(post.rank), "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *safe, "-m", "pac_core.member"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                start_new_session=True,
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which connect() notices
            process.stdin.write(json.dumps(asdict(post)).encode() + b"\n")
            process.stdin.flush()
        return process

    def _ended(self) -> dict[int, int]:
        """Status of each process that has failed, by rank."""
        found = {rank: process.poll() for rank, process in self._processes.items()}
        return {rank: code for rank, code in found.items() if code}

    def _errors(self, rank: int) -> Path:
        return self.folder / f"{rank}.err"

    def _last_words(self, rank: int) -> str:
        lines = self._errors(rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else ""

    def _end(self, patience: float) -> None:
        """Wait ``patience`` seconds for the processes to end, then tell them to, then kill them."""
        try:
            self._reap(patience)
            self._signal(signal.SIGTERM)
            self._reap(GRACE_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            for process in self._processes.values():
                process.communicate()
            if self._transport is not None:
                self._transport.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            torch.set_num_threads(self._threads)

    def _signal(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)  # does nothing to one that has ended

    def _reap(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.0))
