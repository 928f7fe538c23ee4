"""An observer that adds up, over a run, what its report shows beside ``metrics.json``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pac_core.events import (
    CheckpointSaved,
    DeviceStatus,
    EpochDone,
    Event,
    MiniBatchTimed,
    RunStarted,
    StepDone,
)
from pac_core.memory import resident_bytes
from pac_core.report.content import DeviceUse, PhaseUse
from pac_core.spans import Span


@dataclass
class _Sum:
    """Of the states that a device told of in one phase."""

    count: int = 0
    busy: float = 0.0
    sent: float = 0.0
    resident: int = 0


class Recorder:
    """Call it with every event, in order; it takes the time between two events for the phase of the later one.

    Args:
        clock: seconds.
        resident: bytes of memory in use.

    Attributes:
        timeline: of a mini-batch; empty if none was told of.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, resident: Callable[[], int] = resident_bytes
    ) -> None:
        self._clock = clock
        self._resident = resident
        self.begin()

    def begin(self) -> None:
        """A run begins now."""
        self.timeline: tuple[Span, ...] = ()
        self._phases: dict[str, PhaseUse] = {}
        self._devices: dict[tuple[str, str], _Sum] = {}
        self._last = self._clock()

    def __call__(self, event: Event) -> None:
        """Note one event."""
        if isinstance(event, DeviceStatus):
            self._note(event)
        elif isinstance(event, MiniBatchTimed):
            self.timeline = event.spans
        elif (phase := phase_of(event)) is not None:
            self.spent(phase)

    def spent(self, phase: str) -> None:
        """Say that the time since the last event went into ``phase``."""
        now = self._clock()
        before = self._phases.get(phase, PhaseUse(phase, 0.0, 0))
        resident = max(before.resident_bytes, self._resident())
        self._phases[phase] = PhaseUse(phase, before.seconds + now - self._last, resident)
        self._last = now

    @property
    def phases(self) -> tuple[PhaseUse, ...]:
        """What each phase took so far."""
        return tuple(self._phases.values())

    @property
    def device_use(self) -> tuple[DeviceUse, ...]:
        """How each device did in each phase, sorted by device."""
        return tuple(
            DeviceUse(device, phase, sums.busy / sums.count, sums.sent / sums.count, sums.resident)
            for (device, phase), sums in sorted(self._devices.items(), key=lambda item: item[0][0])
        )

    def _note(self, status: DeviceStatus) -> None:
        sums = self._devices.setdefault((status.device, status.phase), _Sum())
        sums.count += 1
        sums.busy += status.busy
        sums.sent += status.bytes_per_s
        sums.resident = max(sums.resident, status.resident_bytes)


def phase_of(event: Event) -> str | None:
    """The phase that ended with ``event`` or goes on; None where it says nothing of that."""
    if isinstance(event, RunStarted):
        return "load"
    if isinstance(event, StepDone):
        return event.phase if event.phase != "fill" or event.loss is None else "train-while-fill"
    return "save" if isinstance(event, CheckpointSaved | EpochDone) else None
