"""Devices as threads of one process, for tests of what runs over a transport: no sockets, and every byte is counted."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import Transport
from pac_core.errors import PacError, TransportError

T = TypeVar("T")

Line = tuple[int, int, Tag]
"""Sender, receiver and tag."""


class Exchange:
    """What is on its way between threads. A message arrives once its receive is posted, as a copy.

    Attributes:
        sent: every message that arrived, with its sender and receiver, in order.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, Message]] = []
        self._lock = threading.Lock()
        self._sends: dict[Line, deque[tuple[Message, Work[None]]]] = defaultdict(deque)
        self._receives: dict[Line, deque[Work[Message]]] = defaultdict(deque)
        self._error: PacError | None = None

    def send(self, line: Line, message: Message, work: Work[None]) -> None:
        """Begin to send."""
        with self._lock:
            self._sends[line].append((message, work))
            self._match(line)

    def receive(self, line: Line, work: Work[Message]) -> None:
        """Post a receive."""
        with self._lock:
            self._receives[line].append(work)
            self._match(line)

    def stop(self, error: PacError) -> None:
        """Fail everything under way and to come."""
        with self._lock:
            self._error = error
            for line in {*self._sends, *self._receives}:
                self._match(line)

    def waiting(self) -> list[str]:
        """What was sent and never received, or the reverse."""
        lost = [f"send {line}" for line, queue in self._sends.items() for _ in queue]
        return lost + [f"receive {line}" for line, queue in self._receives.items() for _ in queue]

    def _match(self, line: Line) -> None:
        sends, receives = self._sends[line], self._receives[line]
        while sends and receives and self._error is None:
            message, sending = sends.popleft()
            copied = replace(message, tensors={name: t.detach().clone() for name, t in message.tensors.items()})
            self.sent.append((line[0], line[1], message))
            receives.popleft().finish(copied)
            sending.finish(None)
        if self._error is not None:
            for _, work in sends:
                work.fail(self._error)
            for receive in receives:
                receive.fail(self._error)


class ThreadTransport(Transport):
    """The transport of one thread among ``size`` that share an `Exchange`."""

    def __init__(self, exchange: Exchange, rank: int, size: int, timeout: float = 240.0) -> None:
        self.exchange = exchange
        self.timeout = timeout
        self._rank = rank
        self._size = size

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def isend(self, to: int, message: Message, *, timeout: float | None = None) -> Work[None]:
        work = Work[None](f"send {message.tag} to device {to}", self.timeout)
        self.exchange.send((self._rank, to, message.tag), message, work)
        return work

    def irecv(self, source: int, tag: Tag) -> Work[Message]:
        work = Work[Message](f"receive {tag} from device {source}", self.timeout)
        self.exchange.receive((source, self._rank, tag), work)
        return work

    def lost(self) -> Mapping[int, str]:
        return {}

    def close(self) -> None:
        pass


def in_threads(size: int, work: Callable[[Transport], T], exchange: Exchange | None = None) -> list[T]:
    """What ``work`` returns on each of ``size`` devices, by rank; the first error ends all and is raised."""
    shared = exchange or Exchange()

    def device(rank: int) -> T:
        try:
            return work(ThreadTransport(shared, rank, size))
        except BaseException as error:
            shared.stop(TransportError(f"device {rank} failed: {error!r}"))
            raise

    with ThreadPoolExecutor(size) as pool:
        found = [pool.submit(device, rank) for rank in range(size)]
    errors = [error for error in (future.exception() for future in found) if error is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, TransportError)):
        raise error
    return [future.result() for future in found]
