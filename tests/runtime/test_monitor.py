"""Devices tell the leader how they are doing, while a run goes on and over real transports."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.errors import PeerLost
from pac_core.events import DeviceJoined, DeviceLost, DeviceStatus, Event
from pac_core.registry import Registry
from pac_core.runtime.metered import Metered
from pac_core.runtime.monitor import TAG, Gauge, Monitor, Reading, places
from pac_core.runtime.stopwatch import Stopwatch

DEVICES = [("desk", 0), ("pi", 1)]


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    """Two connected devices in this process."""
    peers = [Peer(str(tmp_path / str(rank))) for rank in range(2)]
    made: dict[int, Transport] = {}

    def connect(rank: int) -> None:
        made[rank] = Registry().get("transports", "local")(TransportOptions(rank, peers, {"pac": "1"}))

    other = threading.Thread(target=connect, args=(1,))
    other.start()
    connect(0)
    other.join()
    yield made[0], made[1]
    made[1].close()
    made[0].close()


def until(happens: Any) -> None:
    limit = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < limit
        time.sleep(0.01)


def monitor(transport: Any, told: list[Event], interval: float = 0.02) -> Monitor:
    return Monitor(transport, DEVICES, lambda: Reading("cached", 0.0, 0), told.append, interval)


def test_the_leader_tells_of_both_devices(pair: Any) -> None:
    led: list[Event] = []
    followed: list[Event] = []
    with monitor(pair[0], led), monitor(pair[1], followed):
        until(lambda: {e.device for e in led if isinstance(e, DeviceStatus)} == {"desk", "pi"})
    assert led[:2] == [DeviceJoined("desk", 0), DeviceJoined("pi", 1)]
    assert followed == []
    (pi, *_) = [event for event in led if isinstance(event, DeviceStatus) and event.device == "pi"]
    assert (pi.stage, pi.phase, pi.busy, pi.bytes_per_s) == (1, "cached", 1.0, 0.0)
    assert pi.resident_bytes > 10 << 20
    assert [t.name for t in threading.enumerate() if t.name == "pac-monitor"] == []


def test_a_device_that_is_alone_has_no_thread() -> None:
    told: list[Event] = []
    before = threading.active_count()
    with monitor(None, told):
        assert threading.active_count() == before
    assert told == []


def test_statuses_do_not_pile_up_while_nobody_asks_for_them(pair: Any, monkeypatch: Any) -> None:
    sends: list[Message] = []
    isend = pair[1].isend

    def counted(to: int, message: Message, **options: Any) -> Any:
        sends.append(message)
        return isend(to, message, **options)

    monkeypatch.setattr(pair[1], "isend", counted)
    with monitor(pair[1], [], interval=0.01):
        time.sleep(0.3)
        assert len(sends) == 1
        pair[0].irecv(1, TAG).wait(5)
        until(lambda: len(sends) == 2)


@pytest.mark.parametrize(
    "header",
    [{}, {"phase": "\x1b[2J", "busy": 0.5, "rate": 1.0, "resident": 1}, {"phase": "cached", "busy": "much"},
     {"phase": "cached", "busy": float("nan"), "rate": 1.0, "resident": 1},
     {"phase": ["cached"], "busy": 0.5, "rate": 1.0, "resident": 1}],
)  # fmt: skip
def test_what_is_no_status_is_passed_over(pair: Any, header: dict[str, Any]) -> None:
    told: list[Event] = []
    with monitor(pair[0], told):
        pair[1].isend(0, Message(TAG, header))
        pair[1].isend(0, Message(TAG, {"phase": "fill", "busy": 0.5, "rate": 1.0, "resident": 7})).wait(5)
        until(lambda: any(isinstance(e, DeviceStatus) and e.device == "pi" for e in told))
    (status, *_) = [e for e in told if isinstance(e, DeviceStatus) and e.device == "pi"]
    assert status == DeviceStatus("pi", 1, "fill", 0.5, 1.0, 7)


def test_a_lost_device_is_told_of(pair: Any) -> None:
    told: list[Event] = []
    pair[1].close()
    until(pair[0].lost)
    with pytest.raises(PeerLost), monitor(pair[0], told):
        pair[0].irecv(1, Tag("entries")).wait(5)
    assert isinstance(told[-1], DeviceLost)
    assert told[-1].device == "pi"
    assert told[-1].reason


def test_a_gauge_gives_shares_and_rates_since_the_last_time() -> None:
    readings = iter([Reading("load", 1.0, 100), Reading("fill", 1.5, 1100), Reading("cached", 9.5, 1100)])
    times = iter([10.0, 12.0, 16.0])
    gauge = Gauge(lambda: next(readings), lambda: next(times))
    first, second = gauge.status(), gauge.status()
    assert (first["phase"], first["busy"], first["rate"]) == ("fill", 0.75, 500.0)
    assert (second["phase"], second["busy"], second["rate"]) == ("cached", 0.0, 0.0)


def test_waiting_counts_while_it_goes_on() -> None:
    now = [0.0]
    waiting = Stopwatch(lambda: now[0])
    with waiting:
        now[0] = 2.0
        assert waiting.seconds == 2.0
    now[0] = 5.0
    assert waiting.seconds == 2.0


def test_what_is_sent_is_counted(pair: Any) -> None:
    one, two = map(Metered, pair)
    tensor = torch.ones(1000)
    coming = two.irecv(0, Tag("entries"))
    one.isend(1, Message(Tag("entries"), {}, {"a": tensor})).wait(5)
    coming.wait(5)
    assert (one.sent, two.sent) == (4000, 0)
    other = threading.Thread(target=two.all_reduce, args=(torch.ones(1000),))
    other.start()
    one.all_reduce(tensor)
    other.join()
    assert tensor.eq(2).all()
    assert (one.sent, two.sent) == (8000, 4000)


def test_places_are_in_the_order_of_ranks() -> None:
    plan = {"stages": [{"devices": ["a", "b"]}, {"devices": ["c"]}]}
    assert places(plan, ["c", "a", "b"]) == [("c", 1), ("a", 0), ("b", 0)]
