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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.errors import BadInput, PeerLost, RunFailed, TransportError
from pac_core.planning.make import device_names, local_cluster
from pac_core.registry import Registry
from pac_core.runtime.job import PATIENCE

READY = b"ready\n"
"""What a process writes to its standard output once it has loaded and is about to connect."""

GRACE_SECONDS = 3.0
"""How long a process may take to end when it is told to, before it is killed."""

END_SECONDS = 300.0

SILENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Post:
    """What a process is told, as a line of JSON on its standard input.

    Attributes:
        config: `RunConfig.plain`.
        rank: number of the device that it is.
        addresses: of all devices, by rank, in a folder of their own.
        threads: for computing.
        blocked: plugins to leave out.
    """

    config: Mapping[str, Any]
    rank: int
    addresses: tuple[str, ...]
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
    peers = [Peer(address) for address in post.addresses]
    factory = registry.get("transports", transport or "local")
    terms = {"pac": metadata.version("pac-core")}
    made: Transport = factory(TransportOptions(post.rank, peers, terms, timeout=PATIENCE, silence=SILENCE_SECONDS))
    return made


class Crew:
    """The other processes of a run that this one leads. While entered they run, and this process computes with as many
    threads as each of them; afterwards none is left, nor any file of theirs.

    Each has a session of its own, so that Ctrl-C reaches this process alone, which decides for all; each ends by itself
    once this process is gone, whose end closes its standard input.
    """

    remote = False
    """Whether the devices are other machines."""

    def __init__(self, config: RunConfig, count: int, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.folder = Path(tempfile.mkdtemp(prefix="pac-"))
        addresses = tuple(str(self.folder / str(rank)) for rank in range(count))
        blocked = tuple(sorted(registry.blocked))
        threads = threads_each(count)
        self._posts = [Post(config.plain(), rank, addresses, threads, blocked) for rank in range(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._transport: Transport | None = None
        self._threads = torch.get_num_threads()

    @property
    def devices(self) -> Cluster:
        """All devices by rank, this one too."""
        return processes_here(len(self._posts))

    def __enter__(self) -> Crew:
        torch.set_num_threads(self._posts[0].threads)
        try:
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
