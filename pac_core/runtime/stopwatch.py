"""Time spent on something, readable while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType


class Stopwatch:
    """Adds up the time during which it is entered, by one thread at a time; any thread may read it.

    >>> ticks = iter([1.0, 4.0, 4.5])
    >>> waiting = Stopwatch(lambda: next(ticks))
    >>> with waiting:
    ...     print(waiting.seconds)
    3.0
    >>> waiting.seconds
    3.5
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._state: tuple[float, float | None] = (0.0, None)  # one attribute, so that readers see both or neither

    @property
    def seconds(self) -> float:
        """So far, what is going on included."""
        total, began = self._state
        return total if began is None else total + self._clock() - began

    def __enter__(self) -> Stopwatch:
        self._state = (self._state[0], self._clock())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = (self.seconds, None)
