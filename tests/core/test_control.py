"""Messages between leader and workers: they arrive as they were sent, and nonsense harms nobody."""

import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pac_core.contracts.meeting import MESSAGE_BYTES, Came, Event, Left, Meeting, Said, pack_message, unpack_message
from pac_core.control import (
    Busy,
    Call,
    Echo,
    End,
    Ended,
    Hello,
    Job,
    Leaving,
    Message,
    Offer,
    PeerAddress,
    Probe,
    Ready,
    Refusal,
    Welcome,
    read,
    write,
)
from pac_core.errors import Refused
from pac_core.facts import DeviceFacts
from pac_core.worker import Worker, WorkerOptions

FACTS = DeviceFacts(
    name="kitchen",
    system="Linux x86_64",
    cores=2,
    memory_bytes=2**33,
    memory_free_bytes=None,
    disk_free_bytes=2**40,
    accelerator="",
    accelerator_bytes=0,
    gflops=22.5,
    threads=2,
    torch="2.13.0",
)
PEERS = [PeerAddress(address="tcp://10.0.0.1:7", key="k" * 40), PeerAddress(address="tcp://10.0.0.2:7", key="l" * 40)]
CONFIG = {"model": "m", "optimizer": {"lr": 0.1, "max_grad_norm": None}, "cache": {"dir": None}, "columns": {}}
MESSAGES: list[Message] = [
    Hello(version="1", clock=1.5e9, facts=FACTS),
    Welcome(leader="desk"),
    Refusal(reason="no"),
    Call(job="j", address=""),
    Offer(job="j", address="tcp://10.0.0.2:7"),
    Busy(job="j", reason="supper"),
    Job(job="j", config=CONFIG, rank=1, peers=PEERS, threads=0, transport="zmq", blocked=["x"]),
    End(job="j", reason="over"),
    Ready(job="j"),
    Ended(job="j", code=-9, reason="SIGKILL"),
    Leaving(reason="Ctrl-C"),
    Probe(number=3, data=b"\0\xff"),
    Echo(number=3),
]


def test_every_message_arrives_as_it_was_sent() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    for message in MESSAGES:
        assert read(unpack_message(pack_message(write(message)))) == message


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", *(kind + b"\xff" * 4 for kind in (b"\xdf", b"\xdd", b"\xc6")), b"\x91" * 100_000, b"\x81" * 9],
    ids=lambda data: data[:5].hex(),
)
def test_what_is_claimed_is_not_allocated(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a message"):
            unpack_message(data)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_message_that_is_too_long_is_neither_sent_nor_read() -> None:
    with pytest.raises(ValueError, match="too long"):
        pack_message({"data": bytes(MESSAGE_BYTES)})
    with pytest.raises(ValueError, match="too long"):
        unpack_message(bytes(MESSAGE_BYTES + 1))


@st.composite
def mutated(draw: Callable[..., Any]) -> bytes:
    """A message with bytes changed, removed, added or cut."""
    data = bytearray(pack_message(write(draw(st.sampled_from(MESSAGES)))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=5))
    return bytes(data)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def twisted(draw: Callable[..., Any]) -> dict[str, Any]:
    """A message with some of its values replaced by any others."""
    fields = write(draw(st.sampled_from(MESSAGES)))
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2)):
        fields[name] = draw(VALUES)
    return fields


def as_message(data: bytes | dict[str, Any]) -> Mapping[str, Any] | None:
    """What the other end makes of it; None if it is cut off."""
    try:
        return unpack_message(pack_message(data) if isinstance(data, dict) else data)
    except ValueError:
        return None


class Wire(Meeting):
    """A meeting that only notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[Message | None] = []

    def receive(self, seconds: float) -> list[Event]:
        return []

    def send(self, who: str, message: Mapping[str, Any]) -> bool:
        self.sent.append(read(message))
        return True

    def key_of(self, who: str) -> str:
        return "k" * 40

    def close(self, seconds: float) -> None:
        pass


class NoProcess:
    """In the place of a job's process."""

    stopping = False

    def __init__(self, assignment: Any) -> None:
        import json
        from dataclasses import asdict

        json.dumps(asdict(assignment))  # as it is sent to the process

    def ready(self) -> bool:
        return True

    def stop(self) -> None:
        self.stopping = True

    def ended(self) -> tuple[int, str] | None:
        return (0, "") if self.stopping else None

    def release(self) -> None:
        pass


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.lists(mutated() | twisted(), max_size=6))
def test_no_message_crashes_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[Any]) -> None:
    """After a call that it has accepted, so that jobs reach it as well."""
    monkeypatch.setattr("pac_core.worker.JobProcess", NoProcess)
    wire, options = Wire(), WorkerOptions(tmp_path, "home", "127.0.0.1", 1, cache_dir=tmp_path)
    worker = Worker(wire, FACTS, options, lambda line: None)
    worker._heed(Came("tcp://127.0.0.1:7", "desk"))
    for data in [write(Call(job="j", address="")), *said]:
        message = as_message(data)
        if message is None:
            continue
        try:
            worker._heed(Said("tcp://127.0.0.1:7", message))
            worker._look_after()
        except Refused:  # what a leader may well say
            assert read(message) is not None
    worker._heed(Left("tcp://127.0.0.1:7", "gone"))
    worker._look_after()
    assert worker._held is None
    assert all(message is not None for message in wire.sent)


@FUZZ
@given(st.lists(mutated() | twisted(), max_size=6))
def test_no_message_crashes_a_leader(said: list[Any]) -> None:
    """Before a run, and while it is watched."""
    from pac_core.runtime.gathering import Attendance, Gathering
    from pac_core.runtime.watch import Watch

    gathering = object.__new__(Gathering)
    gathering.meeting, gathering.attendance = Wire(), Attendance()
    gathering.name, gathering.workers = "desk", ["kitchen"]
    watch = Watch(Wire(), "j", ["kitchen", "garage"])
    for data in said:
        message = as_message(data)
        if message is not None:
            gathering.heed(Said("kitchen", message))
            watch._heed(Said("kitchen", message))
    assert "garage" in watch._running


def test_what_another_version_may_say_is_no_message() -> None:
    for said in ({}, {"kind": "unheard of"}, {"kind": "ready"}, {"kind": "ready", "job": "j", "more": 1}):
        assert read(said) is None
