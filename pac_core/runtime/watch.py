"""What a leader hears from its workers during a run, and how it ends the run everywhere when one is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from pac_core.contracts.meeting import Event, Left, Meeting
from pac_core.contracts.transport import Transport
from pac_core.control import End, Ended, Leaving, Message, Ready, read, readable, write
from pac_core.errors import RESUME, RunFailed
from pac_core.runtime.job_process import GRACE_SECONDS, STOPPED

FINISH_SECONDS = 300.0
"""How long workers may take to end by themselves after a run that went well."""

CUT_SECONDS = 1.5
"""How long after a device is known to be gone the transport is closed, if it has not noticed by itself."""

LEAVE_SECONDS = GRACE_SECONDS + 0.5
"""The same after a device has said that it leaves, which the run may yet use to stop at the end of a step."""


@dataclass(frozen=True)
class Cause:
    """Why a run cannot go on.

    Attributes:
        weight: lower ones are nearer to the root of it.
        text: for people.
        cut_at: when to close the transport, in monotonic seconds.
    """

    weight: int
    text: str
    cut_at: float


class Watch(threading.Thread):
    """Hears what workers say during a run. What it knows is guarded by ``_changed``; the meeting is its own.

    Args:
        way_out: what is to be done about a device that is gone.
    """

    def __init__(self, meeting: Meeting, job: str, workers: list[str], way_out: str = RESUME) -> None:
        super().__init__(name="pac-watch", daemon=True)
        self._meeting = meeting
        self._job = job
        self._workers = workers
        self._way_out = way_out
        self._running = set(workers)
        self._ready: set[str] = set()
        self._causes: list[Cause] = []
        self._transport: Transport | None = None
        self._finished: str | None = None
        self._changed = threading.Condition()

    def run(self) -> None:
        try:
            while self._finished is None:
                self._hear(0.1)
                self._cut()
            self._part(self._finished)
        finally:
            self._meeting.close(1.0)

    def wait_ready(self, seconds: float) -> None:
        """Return once all workers are ready.

        Raises:
            RunFailed: one is gone, or takes too long.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._causes or self._ready.issuperset(self._workers), seconds)
            if self._causes:
                raise RunFailed(f"{self._first()}; {self._way_out}")
            late = sorted(set(self._workers) - self._ready)
        if late:
            raise RunFailed(f"devices {', '.join(late)} were not ready in {seconds:.0f} s")

    def connected(self, connect: Callable[[], Transport]) -> Transport:
        """What ``connect`` returns, to be closed when a device is gone and it does not notice.

        Raises:
            RunFailed: a device is gone meanwhile; what was begun is left to its own time limit.
            Refused, TransportTimeout: as ``connect``.
        """
        begun: Future[Transport] = Future()
        begun.add_done_callback(lambda _: self._wake())
        threading.Thread(target=_settle, args=(begun, connect), name="pac-connect", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._causes or begun.done())
            if not begun.done():
                raise RunFailed(f"{self._first()}; {self._way_out}")
            self._transport = begun.result()
            return self._transport

    def cause(self, seconds: float = 0.0) -> str | None:
        """What is known to be wrong, waiting so long for it to be known."""
        with self._changed:
            self._changed.wait_for(lambda: self._causes, seconds)
            return self._first() if self._causes else None

    def departure(self, seconds: float) -> str | None:
        """Which device has left by itself, waiting so long for the news."""

        def left() -> list[str]:
            return [cause.text for cause in self._causes if cause.weight == 0]

        with self._changed:
            return next(iter(self._changed.wait_for(left, seconds)), None)

    def finish(self, reason: str) -> None:
        """End the jobs that still run, because of ``reason``; without one wait until they end. Then end the watch."""
        self._finished = reason
        self.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _first(self) -> str:
        return min(self._causes, key=lambda cause: cause.weight).text

    def _hear(self, seconds: float) -> None:
        for event in self._meeting.receive(seconds):
            with self._changed:
                self._heed(event)
                self._changed.notify_all()

    def _heed(self, event: Event) -> None:
        who = event.who
        if who not in self._running:
            return
        if isinstance(event, Left):
            self._gone(who, Cause(0, f"lost device '{who}': {event.reason}", time.monotonic() + CUT_SECONDS))
            return
        message = None if not hasattr(event, "message") else read(event.message)
        if isinstance(message, Leaving):
            text = f"lost device '{who}': {readable(message.reason)}"
            self._add(Cause(0, text, time.monotonic() + LEAVE_SECONDS), who)
        elif isinstance(message, Ready) and message.job == self._job:
            self._ready.add(who)
        elif isinstance(message, Ended) and message.job == self._job:
            self._ended(who, message)

    def _ended(self, who: str, ended: Ended) -> None:
        if ended.code in (0, STOPPED):
            self._running.discard(who)
            return
        reason = readable(ended.reason)
        weight = 3 if reason.startswith("lost device") else 1 if ended.code < 0 else 2
        self._gone(who, Cause(weight, f"lost device '{who}': {reason}", time.monotonic() + CUT_SECONDS))

    def _gone(self, who: str, cause: Cause) -> None:
        self._running.discard(who)
        self._add(cause, who)

    def _add(self, cause: Cause, who: str) -> None:
        first = not self._causes
        self._causes.append(cause)
        if first:
            self._end(self._running - {who}, cause.text)

    def _end(self, names: set[str], reason: str) -> None:
        message: Message = End(job=self._job, reason=reason[:1000])
        for name in names:
            self._meeting.send(name, write(message))

    def _cut(self) -> None:
        """Close the transport, which makes the run fail, when it is time."""
        with self._changed:
            due = bool(self._causes) and time.monotonic() >= min(cause.cut_at for cause in self._causes)
            transport, self._transport = (self._transport, None) if due else (None, self._transport)
        if transport is not None:
            transport.close()

    def _part(self, reason: str) -> None:
        """Let workers end, or make them."""
        for patience, words in ((0.0 if reason else FINISH_SECONDS, ""), (GRACE_SECONDS + 1.0, reason or "it is over")):
            if words:
                self._end(self._running, words)
            until = time.monotonic() + patience
            while self._running and time.monotonic() < until:
                self._hear(0.1)


def _settle(begun: Future[Transport], connect: Callable[[], Transport]) -> None:
    try:
        begun.set_result(connect())
    except BaseException as error:
        begun.set_exception(error)
