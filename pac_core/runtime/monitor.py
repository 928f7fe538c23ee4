"""How the devices of a run are doing: each tells the leader about once a second, which tells the observers."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeGuard

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import Transport
from pac_core.errors import PeerLost, TransportError
from pac_core.events import DeviceJoined, DeviceLost, DeviceStatus, Event
from pac_core.memory import resident_bytes

INTERVAL_SECONDS = 1.0

TAG = Tag("status")

PHASES = ("load", "fill", "cached", "evaluate", "generate")


@dataclass(frozen=True)
class Reading:
    """What a device knows of itself: its phase, seconds that it has waited so far, bytes that it has sent so far."""

    phase: str
    waited: float
    sent: int


def places(plan: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, int]]:
    """Name and stage of each device of ``names``, in a plan as in ``plan.json``."""
    stages = {device: number for number, stage in enumerate(plan["stages"]) for device in stage["devices"]}
    return [(name, stages[name]) for name in names]


class Monitor:
    """While entered, a thread sends this device's status to the leader, and the leader's tells of all of them.

    A run of one device has no thread. What is sent is a message without tensors a second, and none while the one before
    it has not gone, so that they do not pile up.

    Args:
        transport: connects the devices; None where there is one.
        devices: as `places` gives them.
        read: called by the thread.
        tell: called at the leader, by the thread and on entering and leaving.
        interval: seconds.
    """

    def __init__(
        self,
        transport: Transport | None,
        devices: Sequence[tuple[str, int]],
        read: Callable[[], Reading],
        tell: Callable[[Event], None],
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._transport = transport
        self._devices = devices
        self._read = read
        self._tell = tell
        self._interval = interval
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Monitor:
        if self._transport is None:
            return self
        leads = self._transport.rank == 0
        if leads:
            for device, stage in self._devices:
                self._tell(DeviceJoined(device, stage))
        work = self._lead if leads else self._follow
        self._thread = threading.Thread(target=self._run, args=(work, self._transport), name="pac-monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        if isinstance(error, PeerLost):
            assert self._transport is not None
            reason = self._transport.lost().get(error.rank, str(error))
            self._tell(DeviceLost(self._devices[error.rank][0], reason))

    def _run(self, work: Callable[[Transport], None], transport: Transport) -> None:
        with contextlib.suppress(TransportError):  # whoever waits for the peer meets the error as well
            work(transport)

    def _follow(self, transport: Transport) -> None:
        gauge = Gauge(self._read)
        sent: Work[None] | None = None
        while not self._ended.wait(self._interval):
            if sent is None or sent.done():
                sent = transport.isend(0, Message(TAG, gauge.status()), timeout=self._interval)

    def _lead(self, transport: Transport) -> None:
        gauge = Gauge(self._read)
        coming = {rank: transport.irecv(rank, TAG) for rank in range(1, transport.size)}
        while not self._ended.wait(self._interval):
            self._told(0, gauge.status())
            for rank, work in coming.items():
                if work.done():
                    self._told(rank, work.wait().header)
                    coming[rank] = transport.irecv(rank, TAG)

    def _told(self, rank: int, header: Mapping[str, Any]) -> None:
        """Tell of a status; one that is none, as only a device of another version could send, is passed over."""
        phase, busy, rate, resident = (header.get(key) for key in ("phase", "busy", "rate", "resident"))
        if phase in PHASES and _is_amount(busy) and busy <= 1 and _is_amount(rate) and isinstance(resident, int):
            device, stage = self._devices[rank]
            self._tell(DeviceStatus(device, stage, phase, busy, rate, resident))


def _is_amount(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value) and value >= 0


class Gauge:
    """Turns readings into what happened between two of them."""

    def __init__(self, read: Callable[[], Reading], clock: Callable[[], float] = time.perf_counter) -> None:
        self._read = read
        self._clock = clock
        self._last, self._when = read(), clock()

    def status(self) -> dict[str, Any]:
        """Header of a status message: ``phase``, ``busy`` from 0 to 1, ``rate`` in bytes a second, ``resident`` in
        bytes."""
        now, when = self._read(), self._clock()
        seconds = max(when - self._when, 1e-6)
        busy = 1.0 - (now.waited - self._last.waited) / seconds
        rate = (now.sent - self._last.sent) / seconds
        self._last, self._when = now, when
        return {"phase": now.phase, "busy": min(max(busy, 0.0), 1.0), "rate": rate, "resident": resident_bytes()}
