"""Runs one function on every device of a job, each device a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from pac_core.contracts.transport import Transport, TransportOptions

PATIENCE = 280.0
"""Seconds that a crew may take. Generous: a loaded machine may stop for a minute."""

_fork = multiprocessing.get_context("fork")  # so that a test's functions need not be importable in the child

Make = Callable[[TransportOptions], Transport]
Body = Callable[[Transport], Any]


@dataclass(frozen=True)
class Report:
    """What became of a device: its exit code, and what its function returned or the traceback."""

    code: int | None
    value: Any = None
    failure: str = ""


def run_crew(make: Make, options: Sequence[TransportOptions], body: Body, dying: Collection[int] = ()) -> list[Any]:
    """Open a transport on each device, call ``body`` with it, close it; returns what the calls returned, by rank.

    Args:
        dying: ranks that ``body`` kills or stops for good; the others must succeed.
    """
    reports = _run(lambda own: _opened(make, own, body), options, dying)
    for rank, report in enumerate(reports):
        expected = -signal.SIGKILL if rank in dying else 0
        assert report.code == expected, f"device {rank} ended with {report.code}:\n{report.failure}"
    return [report.value for report in reports]


def run_each(work: Callable[[TransportOptions], Any], options: Sequence[TransportOptions]) -> list[Report]:
    """Call ``work`` with each device's options, each in a process, and report how it went."""
    return _run(work, options, ())


def _opened(make: Make, own: TransportOptions, body: Body) -> Any:
    with make(own) as transport:
        return body(transport)


def _run(
    work: Callable[[TransportOptions], Any], options: Sequence[TransportOptions], dying: Collection[int]
) -> list[Report]:
    deadline = time.monotonic() + PATIENCE
    pipes = [_fork.Pipe(duplex=False) for _ in options]
    processes = [_fork.Process(target=_child, args=(work, own, pipe[1])) for own, pipe in zip(options, pipes)]
    for process, (_, sending) in zip(processes, pipes):
        process.start()
        sending.close()
    try:
        living = [rank for rank in range(len(options)) if rank not in dying]
        found = {rank: _report(processes[rank], pipes[rank][0], deadline) for rank in [*living]}
    finally:
        for process in processes:
            process.kill()  # also one that stopped itself
            process.join()
    return [found.get(rank) or Report(process.exitcode) for rank, process in enumerate(processes)]


def _report(process: multiprocessing.process.BaseProcess, receiving: Connection, deadline: float) -> Report:
    value, failure = None, "it said nothing"
    if receiving.poll(max(0.0, deadline - time.monotonic())):
        try:
            value, failure = receiving.recv()
        except EOFError:
            failure = "it died"
    process.join(max(0.0, deadline - time.monotonic()))
    return Report(process.exitcode, value, failure)


def _child(work: Callable[[TransportOptions], Any], own: TransportOptions, sending: Connection) -> None:
    torch.set_num_threads(1)  # threads of the parent's pool do not survive the fork
    try:
        sending.send((work(own), ""))
    except BaseException:
        sending.send((None, traceback.format_exc()))
        os._exit(1)
