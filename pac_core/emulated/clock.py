"""The time that an emulated device computes for: waited for, to a fraction of a millisecond."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

CATCH_UP = 0.05
"""Seconds that a device is behind at most: what took longer, as loading does, was no part of computing."""


class Clock:
    """Lets seconds of computing pass on the thread that calls it.

    What this thread itself takes of the processor between two waits (cutting batches, making tensors, encoding entries)
    belongs to the computing that is waited for, so a wait is shorter by it. What it spends blocked, as on a message,
    does not. A wait that ends late, since the machine is busy or the timer coarse, shortens the next one, unless the
    device has been idle in between for as long.

    Args:
        now, used, sleep: seconds of wall time and of this thread's processor time so far, and how to wait; for tests.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._now, self._used, self._sleep = now, used, sleep
        self._late = 0.0
        self._ended, self._before = now(), used()

    def spend(self, seconds: float) -> None:
        """Return when a device that computes for ``seconds`` would be done."""
        now = self._now()
        passed = now - self._ended
        worked = min(max(self._used() - self._before, 0.0), passed, CATCH_UP)
        owed = seconds - worked - max(self._late - (passed - worked), 0.0)
        if owed > 0:
            self._sleep(owed)
        self._ended, self._before = self._now(), self._used()
        self._late = min(self._ended - now - owed, CATCH_UP)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A device has one clock, however many models it holds."""
        return self
