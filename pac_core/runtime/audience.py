"""Whoever is told of a run's progress: observers that were given, and those of plugins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from pac_core.events import Event
from pac_core.registry import Registry

Observer = Callable[[Event], None]

log = logging.getLogger("pac")


class Audience:
    """Tells of one event at a time, whatever thread it comes from: the statuses of devices have one of their own.

    An observer that fails is reported and left out.
    """

    def __init__(self, registry: Registry, observers: Sequence[Observer]) -> None:
        self._registry = registry
        self._observers = list(observers)
        self._telling = threading.RLock()

    def __call__(self, event: Event) -> None:
        """Tell everyone."""
        with self._telling:
            for observer in list(self._observers):
                try:
                    observer(event)
                except Exception:  # a stranger's code may fail in any way
                    self._observers.remove(observer)
                    log.exception("observer %r failed and is left out", observer)
            self._registry.tell(event)
