"""Leader and workers over ZeroMQ: who finds whom, who is let in, and what becomes of those who talk nonsense."""

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

zmq = pytest.importorskip("zmq")

from pac_core.addresses import free_port, join_address  # noqa: E402
from pac_core.contracts.meeting import MESSAGE_BYTES, Came, Event, Left, Meeting, MeetingOptions, Said  # noqa: E402
from pac_core.errors import BadInput, Refused  # noqa: E402
from pac_core.keys import KeyFolder, KeyPair  # noqa: E402
from pac_plugins.transports import host_zmq, join_zmq, new_keys  # noqa: E402
from pac_plugins.transports.zmq_meeting import LATER  # noqa: E402

HOST = "127.0.0.1"


class Place:
    """Keys of three devices that know each other and of one that nobody knows, and an address to meet at."""

    def __init__(self, path: Path) -> None:
        self.address = join_address(HOST, free_port(HOST))
        self.folders = {name: KeyFolder(path / name) for name in ("attic", "desk", "kitchen", "stranger")}
        self.keys = {name: folder.make(name, new_keys) for name, folder in self.folders.items()}
        for folder in self.folders.values():
            for name in ("attic", "desk", "kitchen"):
                folder.allow(self.keys[name], name, "home")
        self.opened: list[Meeting] = []

    def host(self, name: str = "desk", **changes: Any) -> Meeting:
        given = {"addresses": [self.address], "keys": self.folders[name].path, **changes}
        self.opened.append(host_zmq(MeetingOptions(**given)))
        return self.opened[-1]

    def join(self, name: str = "kitchen", **changes: Any) -> Meeting:
        given = {"addresses": [self.address], "keys": self.folders[name].path, **changes}
        self.opened.append(join_zmq(MeetingOptions(**given)))
        return self.opened[-1]

    def raw(self, keys: KeyPair, server: str) -> Any:
        """A bare socket that is connected with these keys."""
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.curve_serverkey = server.encode()
        dealer.curve_publickey, dealer.curve_secretkey = keys.public.encode(), keys.secret.encode()
        dealer.connect(self.address)
        return dealer

    context = zmq.Context.instance()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for meeting in made.opened:
        meeting.close(0.1)


def until(kind: type, *meetings: Meeting, seconds: float = 15) -> list[Event]:
    """What the first of ``meetings`` tells up to an event of this kind, while the others are kept going."""
    found: list[Event] = []
    end = time.monotonic() + seconds
    while not any(isinstance(event, kind) for event in found):
        assert time.monotonic() < end, f"no {kind.__name__}, but {found}"
        found += meetings[0].receive(0.05)
        for other in meetings[1:]:
            other.receive(0.01)
    return found


def idle(*meetings: Meeting, seconds: float = 1.0) -> list[Event]:
    """What the first of ``meetings`` tells in so many seconds."""
    found: list[Event] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found += meetings[0].receive(0.05)
        for other in meetings[1:]:
            other.receive(0.01)
    return found


@pytest.mark.parametrize("first", ["worker", "leader"])
def test_they_meet_whoever_is_first_and_again_after_the_leader_was_gone(place: Place, first: str) -> None:
    if first == "worker":
        worker = place.join()
        assert idle(worker) == []
    host = place.host()
    if first == "leader":
        assert idle(host) == []
        worker = place.join()
    for _ in range(2):
        assert until(Came, worker, host) == [Came(place.address, "desk")]
        assert worker.key_of(place.address) == place.keys["desk"]
        assert worker.send(place.address, {"kind": "x", "n": [1, 2.5, "three", b"four", None]})
        came, said = until(Said, host)
        assert (came, host.key_of("kitchen")) == (Came("kitchen", "kitchen"), place.keys["kitchen"])
        assert said == Said("kitchen", {"kind": "x", "n": [1, 2.5, "three", b"four", None]})
        assert host.send("kitchen", {"answer": 1})
        assert until(Said, worker, host) == [Said(place.address, {"answer": 1})]
        began = time.monotonic()
        host.close(0.5)
        (left,) = until(Left, worker)
        assert (left.who, time.monotonic() - began < 2) == (place.address, True)
        assert not worker.send(place.address, {})
        host = place.host()


def test_all_that_a_worker_says_arrives_before_it_has_left(place: Place) -> None:
    host, worker = place.host(), place.join()
    until(Came, worker, host)
    for number in range(20):
        assert worker.send(place.address, {"n": number, "data": bytes(1000)})
    worker.close(2.0)
    _, *said, left = until(Left, host)
    assert [event.message["n"] for event in said if isinstance(event, Said)] == list(range(20))
    assert isinstance(left, Left)
    assert not host.send("kitchen", {})


def test_an_unknown_key_is_refused_and_gets_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    host, stranger = place.host(), place.join("stranger")
    with caplog.at_level(logging.WARNING, "pac"), pytest.raises(Refused, match="does not let this device's key in"):
        until(Came, stranger, host)
    assert [r for r in caplog.records if place.keys["stranger"] in r.getMessage()]
    secret = place.folders["stranger"].own()
    bare = place.raw(secret, place.keys["desk"])
    bare.send(b"\x81\xa4kind\xa1x")
    assert idle(host, seconds=1.5) == []
    assert bare.poll(0) == 0
    bare.close()


def test_what_has_no_allowed_key_is_no_leader_and_learns_nothing(place: Place, tmp_path: Path) -> None:
    """The stranger lets the kitchen in, but the kitchen does not know it."""
    host, worker = place.host("stranger"), place.join()
    heard: list[Event] = []
    stop = threading.Event()
    listening = threading.Thread(target=lambda: [heard.extend(host.receive(0.05)) for _ in iter(stop.is_set, True)])
    listening.start()
    try:
        with pytest.raises(Refused, match="has no key on the allow-list of cluster 'home'"):
            until(Came, worker)
    finally:
        stop.set()
        listening.join()
    assert heard == []


def test_what_speaks_no_curve_is_no_leader(place: Place) -> None:
    """A server of another kind, which reads what a worker sends and answers with its own words."""
    heard: list[bytes] = []
    port = int(place.address.rpartition(":")[2])
    with socket.create_server((HOST, port)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(Refused, match="or speaks no CURVE"):
            until(Came, place.join())
        server.shutdown(socket.SHUT_RDWR)
    assert heard
    assert all(place.keys["kitchen"].encode() not in data for data in heard)


def test_a_second_worker_with_the_same_key_waits_until_the_first_is_gone(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    host, first, second = place.host(), place.join(), place.join()
    until(Came, first, host)
    first.send(place.address, {"from": 1})
    until(Said, host)
    until(Came, second, host)
    with caplog.at_level(logging.WARNING, "pac"):
        second.send(place.address, {"from": 2})
        (left,) = until(Left, second, host, first)
    assert "later" in left.reason
    assert any("has a worker with this device's key already" in r.getMessage() for r in caplog.records)
    first.close(0.5)
    assert isinstance(until(Left, host)[-1], Left)
    until(Came, second, host)
    second.send(place.address, {"from": 2})
    assert until(Said, host)[-1] == Said("kitchen", {"from": 2})


@pytest.mark.parametrize(
    "frames",
    [
        [b"nonsense"],
        [b"\xc1"],
        [b"\x01"],
        [b"\xdf\xff\xff\xff\xff"],  # a mapping that claims 4,294,967,295 members
        [b"\x81\xa1x\xc6\xff\xff\xff\xff"],  # 4 GiB of bytes are claimed
        [b"\x81\x01\x01"],  # a name that is no text
        [b"\x91" * 5000],
        [b"\x81\xa1x\xc7\x01\x05\x00"],  # an extension type
        [b"\x80", b"\x80"],
    ],
    ids=lambda frames: frames[0][:8].hex() + f"-{len(frames)}",
)
def test_a_worker_that_talks_nonsense_is_cut_off_alone(place: Place, frames: list[bytes]) -> None:
    host, other = place.host(), place.join("attic")
    bare = place.raw(place.folders["kitchen"].own(), place.keys["desk"])
    until(Came, other, host)
    other.send(place.address, {"n": 1})
    until(Said, host)
    bare.send_multipart(frames)
    *_, left = until(Left, host, other)
    assert left == Left("kitchen", "it sent what no device of PAC sends")
    bare.send(b"\x81\xa1n\x02")
    other.send(place.address, {"n": 2})
    assert until(Said, host, other) == [Said("attic", {"n": 2})]
    assert not host.send("kitchen", {})
    bare.close()


def test_a_frame_that_is_too_long_is_not_even_read(place: Place) -> None:
    host = place.host()
    bare = place.raw(place.folders["kitchen"].own(), place.keys["desk"])
    bare.send(b"\x81\xa1n\x01")
    until(Said, host)
    bare.send(bytes(MESSAGE_BYTES + 100))
    assert isinstance(until(Left, host)[-1], Left)
    bare.close()


def test_a_leader_that_talks_nonsense_is_left(place: Place) -> None:
    host, worker = place.host(), place.join()
    until(Came, worker, host)
    worker.send(place.address, {"n": 1})
    until(Said, host)
    host._router.send_multipart([host._ids["kitchen"], b"nonsense"])  # type: ignore[attr-defined]
    assert until(Left, worker, host)[-1] == Left(place.address, "it sent what no device of PAC sends")
    assert LATER == b"\xc0"  # nil, which is no message


def test_what_cannot_be_is_refused(place: Place, tmp_path: Path) -> None:
    place.host()
    with pytest.raises(BadInput, match=r"cannot listen at .*: Address already in use; is another 'pac finetune'"):
        place.host()
    with pytest.raises(BadInput, match=r"must be like tcp://HOST:PORT"):
        place.join(addresses=["desk:7077"])
    with pytest.raises(BadInput, match="there are no keys in"):
        place.join(keys=tmp_path / "none")
    with pytest.raises(BadInput, match="nobody is on the allow-list of cluster 'office'"):
        place.host(addresses=[join_address(HOST, free_port(HOST))], cluster="office")
    with pytest.raises(BadInput, match="no leader is on the allow-list of cluster 'office'"):
        place.join(cluster="office")


SILENT = """
import sys
from pathlib import Path
from pac_core.contracts.meeting import MeetingOptions
from pac_plugins.transports import join_zmq
meeting = join_zmq(MeetingOptions([sys.argv[1]], Path(sys.argv[2]), silence=1.0))
while not meeting.receive(1):
    pass
meeting.send(sys.argv[1], {"n": 1})
meeting.receive(100)
"""


def test_a_silent_end_is_given_up(place: Place) -> None:
    """As after a power cut: the connection is there, and nobody answers."""
    host = place.host(silence=1.0)
    with subprocess.Popen([sys.executable, "-c", SILENT, place.address, str(place.folders["kitchen"].path)]) as worker:
        try:
            until(Said, host)
            assert idle(host, seconds=2.5) == []
            worker.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            assert isinstance(until(Left, host)[-1], Left)
            assert time.monotonic() - began < 5
        finally:
            worker.kill()
