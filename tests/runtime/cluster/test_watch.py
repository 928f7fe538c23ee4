"""The watch over the workers of a run, beside a meeting of which the test says what happens."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from pac_core.contracts.meeting import Event, Left, Meeting
from pac_core.errors import Refused, RunFailed
from pac_core.runtime.watch import Watch


class Scripted(Meeting):
    """Tells of `coming` at once, and then of nothing."""

    def __init__(self, coming: list[Event]) -> None:
        self._coming = coming
        self.closed = threading.Event()

    def receive(self, seconds: float) -> list[Event]:
        coming, self._coming = self._coming, []
        if not coming:
            time.sleep(min(seconds, 0.02))
        return coming

    def send(self, who: str, message: Mapping[str, Any]) -> bool:
        return True

    def key_of(self, who: str) -> str:
        return ""

    def close(self, seconds: float) -> None:
        self.closed.set()


def test_a_worker_that_goes_while_devices_connect_ends_the_wait() -> None:
    meeting = Scripted([Left("kitchen", "its process ended")])
    watch = Watch(meeting, "job", ["kitchen", "garage"])
    released = threading.Event()
    watch.start()
    try:
        with pytest.raises(RunFailed, match=r"^lost device 'kitchen': its process ended; what was written is whole"):
            watch.connected(lambda: released.wait(60))  # type: ignore[arg-type,return-value]
    finally:
        released.set()
        watch.finish("it is over")
    assert meeting.closed.is_set()


def test_why_devices_do_not_connect_is_told() -> None:
    def refuse() -> Any:
        raise Refused("another version")

    watch = Watch(Scripted([]), "job", ["kitchen"])
    watch.start()
    try:
        with pytest.raises(Refused, match="another version"):
            watch.connected(refuse)
    finally:
        watch.finish("it is over")
