"""Entries that travel to their owners on a thread of their own, while the first cached epoch trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

Arrived = Callable[[Sequence[int]], None]


class Spreading:
    """Runs the spreading of entries beside training. Call `finish` in the end.

    Args:
        work: spreads, given a function to be told of the samples that have arrived; returns those that could not.
        there: samples that need not be brought.
    """

    def __init__(self, work: Callable[[Arrived], list[int]], there: Iterable[int] = ()) -> None:
        self._work = work
        self._there = set(there)
        self._changed = threading.Condition()
        self._absent: list[int] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pac-spreading", daemon=True)
        self._thread.start()

    def wait(self, samples: Sequence[int]) -> None:
        """Return once these samples, all of this device's own, have arrived, or everything that can has.

        Raises:
            PeerLost, StoreFull, ...: what ended the spreading.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self._there.issuperset(samples))
            if self._error is not None:
                raise self._error

    def finish(self) -> list[int]:
        """Wait for the rest; returns the samples that could not be brought. Errors as in `wait`."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._absent or []

    @property
    def ended(self) -> bool:
        """Whether nothing is on its way any more."""
        return self._absent is not None or self._error is not None

    def _run(self) -> None:
        try:
            absent = self._work(self._arrived)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            return
        with self._changed:
            self._absent = absent
            self._changed.notify_all()

    def _arrived(self, samples: Sequence[int]) -> None:
        with self._changed:
            self._there.update(samples)
            self._changed.notify_all()
