"""Who gets in over ZeroMQ, who does not, and what is to be seen on the wire."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

zmq = pytest.importorskip("zmq")

from pac_core.contracts.message import Message, Tag  # noqa: E402
from pac_core.contracts.transport import Peer, Transport, TransportOptions  # noqa: E402
from pac_core.errors import BadInput, Refused, TransportTimeout  # noqa: E402
from pac_core.keys import KeyFolder, KeyPair  # noqa: E402
from pac_core.wire import Kind, pack_head, unpack_head  # noqa: E402
from pac_plugins.transports import make_zmq, new_keys  # noqa: E402
from pac_plugins.transports.greeting import Identity  # noqa: E402

TAG = Tag("forward", 0, 0)


class Cluster:
    """Two devices and their keys on the loopback interface."""

    def __init__(self, path: Path) -> None:
        self.folders = [KeyFolder(path / name) for name in ("leader", "worker")]
        self.keys = [folder.make("device", new_keys) for folder in self.folders]
        for folder in self.folders:
            for name, key in zip(("leader", "worker"), self.keys):
                folder.allow(key, name, "home")
        self.ports = [free_port(), free_port()]
        self.pool = ThreadPoolExecutor(8)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.ports[0]}"

    def options(self, rank: int, **changes: Any) -> TransportOptions:
        peers = [Peer(f"tcp://127.0.0.1:{port}", key) for port, key in zip(self.ports, self.keys)]
        given = {
            "rank": rank,
            "peers": peers,
            "keys": self.folders[rank].path,
            "timeout": 60,
            "terms": {"model": "abc"},
        }
        return TransportOptions(**(given | changes))

    def start(self, rank: int, **changes: Any) -> Future[Transport]:
        return self.pool.submit(make_zmq, self.options(rank, **changes))

    def works(self, leader: Future[Transport]) -> None:
        """The genuine worker gets in, and a tensor over."""
        with make_zmq(self.options(1)) as worker, leader.result(60) as transport:
            sent = worker.isend(0, Message(TAG, {}, {"x": torch.arange(5)}))
            assert transport.irecv(1, TAG).wait().tensors["x"].tolist() == [0, 1, 2, 3, 4]
            sent.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.pool.shutdown()


@pytest.fixture
def stranger() -> Iterator[Callable[..., list[bytes] | None]]:
    """Connects with these keys, or none, says hello, and gives the answer, if there is one in two seconds."""
    context = zmq.Context()

    def call(address: str, keys: KeyPair | None, server: str, hello: bytes, patience: int = 2000) -> list[bytes] | None:
        dealer = context.socket(zmq.DEALER)
        if keys is not None:
            dealer.curve_serverkey = server.encode()
            dealer.curve_publickey, dealer.curve_secretkey = keys.public.encode(), keys.secret.encode()
        dealer.linger = 0
        dealer.connect(address)
        dealer.send(hello)
        answered = dealer.poll(patience)
        return dealer.recv_multipart() if answered else None

    yield call
    context.destroy(linger=0)


HELLO = Identity(1, 2, {"model": "abc"}).hello()


def test_an_unknown_key_gets_nothing_and_is_logged(
    cluster: Cluster, stranger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    leader, unknown = cluster.start(0), new_keys()
    with caplog.at_level(logging.WARNING, "pac"):
        assert stranger(cluster.address, unknown, cluster.keys[0], HELLO) is None
        assert not leader.done()
        cluster.works(leader)
    (line,) = [r.getMessage() for r in caplog.records if unknown.public in r.getMessage()]
    assert "127.0.0.1" in line
    assert "'home'" in line


def test_who_does_not_come_in_time_is_named_with_the_address(cluster: Cluster) -> None:
    leader = cluster.address
    with pytest.raises(TransportTimeout, match=f"device 1 did not come to {leader} in time; a firewall"):
        make_zmq(cluster.options(0, timeout=0.5))
    with pytest.raises(TransportTimeout, match=f"device 0 was not reached at {leader} in time; a firewall"):
        make_zmq(cluster.options(1, timeout=0.5))


def test_who_does_not_know_the_key_of_the_leader_gets_nothing_and_is_logged(
    cluster: Cluster, stranger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    leader = cluster.start(0)
    with caplog.at_level(logging.WARNING, "pac"):
        assert stranger(cluster.address, cluster.folders[1].own(), new_keys().public, HELLO) is None
        cluster.works(leader)
    assert "wrong key" in caplog.text


def test_who_does_not_encrypt_gets_nothing(cluster: Cluster, stranger: Any) -> None:
    leader = cluster.start(0)
    assert stranger(cluster.address, None, "", HELLO) is None
    cluster.works(leader)


def test_a_key_of_another_cluster_gets_nothing(cluster: Cluster, stranger: Any) -> None:
    leader, other = cluster.start(0), new_keys()
    cluster.folders[0].allow(other.public, "guest", "guests")
    assert stranger(cluster.address, other, cluster.keys[0], HELLO) is None
    cluster.works(leader)


def test_a_known_device_cannot_take_the_place_of_another(cluster: Cluster, stranger: Any) -> None:
    leader, other = cluster.start(0), new_keys()
    cluster.folders[0].allow(other.public, "third", "home")
    kind, (reason,) = unpack_head(stranger(cluster.address, other, cluster.keys[0], HELLO, 30_000)[0])
    assert (kind, reason) == (Kind.REFUSE, "device 1 is to have another key")
    cluster.works(leader)


@pytest.mark.parametrize(
    ("hello", "told"),
    [
        (pack_head(Kind.HELLO, 99, "whatever"), "protocol 99"),
        (Identity(1, 2, {"model": "xyz"}).hello(), "its model is xyz, and that of device 0 is abc"),
        (Identity(1, 2, {}).hello(), "its model is None"),
        (Identity(2, 3, {"model": "abc"}).hello(), "device 2 of 3"),
    ],
    ids=["protocol", "model", "no model", "size"],
)
def test_another_version_or_model_is_refused_with_a_reason(
    cluster: Cluster, stranger: Any, hello: bytes, told: str
) -> None:
    leader = cluster.start(0)
    kind, (reason,) = unpack_head(
        stranger(cluster.address, cluster.folders[1].own(), cluster.keys[0], hello, 30_000)[0]
    )
    assert kind is Kind.REFUSE
    assert told in reason
    with pytest.raises(Refused):
        leader.result(60)


def test_a_job_that_has_begun_takes_nobody_in(cluster: Cluster, stranger: Any) -> None:
    leader = cluster.start(0)
    with make_zmq(cluster.options(1)), leader.result(60):
        answer = stranger(cluster.address, cluster.folders[1].own(), cluster.keys[0], HELLO, 30_000)
        assert unpack_head(answer[0]) == (Kind.REFUSE, ["the job has begun"])
        post = pack_head(Kind.POST, 1, TAG)
        assert unpack_head(stranger(cluster.address, cluster.folders[1].own(), cluster.keys[0], post, 30_000)[0])[
            0
        ] is (Kind.REFUSE)


def test_a_device_whose_key_is_not_let_in_is_told_so(cluster: Cluster) -> None:
    for file in (cluster.folders[0].path / "allowed" / "home").glob("worker.pub"):
        file.write_text(f"{new_keys().public} worker\n")
    peers = [Peer(f"tcp://127.0.0.1:{port}", key) for port, key in zip(cluster.ports, cluster.keys)]
    replaced = [
        peers[0],
        Peer(peers[1].address, next(iter(cluster.folders[0].allowed("home").keys() - {cluster.keys[0]}))),
    ]
    leader = cluster.start(0, peers=replaced, timeout=8)
    with pytest.raises(Refused, match="does not let this device's key in"):
        make_zmq(cluster.options(1))
    with pytest.raises(TransportTimeout):
        leader.result(60)


def test_an_impostor_of_the_leader_is_found_out_and_told_nothing(cluster: Cluster) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_secretkey = True, new_keys().secret.encode()
    router.bind(cluster.address)
    with pytest.raises(Refused, match="does not have the key of device 0"):
        make_zmq(cluster.options(1, timeout=30))
    assert router.poll(200) == 0
    context.destroy(linger=0)


def test_nothing_readable_crosses_the_wire(cluster: Cluster) -> None:
    secret = b"a private text, and its label"
    leader, (port, seen) = cluster.start(0), tap(cluster.ports[0])
    peers = [Peer(f"tcp://127.0.0.1:{port}", cluster.keys[0]), cluster.options(1).peers[1]]
    data = torch.frombuffer(bytearray(secret * 1000), dtype=torch.uint8)
    with make_zmq(cluster.options(1, peers=peers)) as worker, leader.result(60) as transport:
        sent = worker.isend(0, Message(TAG, {"text": secret}, {"x": data}))
        assert torch.equal(transport.irecv(1, TAG).wait().tensors["x"], data)
        sent.wait()
    wire = b"".join(seen)
    assert len(wire) > len(secret) * 1000, "all of it went through the tap"
    assert b"CURVE" in wire
    assert secret[:8] not in wire
    assert b"forward" not in wire


def tap(port: int) -> tuple[int, list[bytes]]:
    """A port that leads to another one, and what passes through it in either direction."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                seen.append(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve() -> None:
        while True:
            near = listener.accept()[0]
            try:
                far = socket.create_connection(("127.0.0.1", port))
            except ConnectionRefusedError:  # the leader does not listen yet; the worker tries again
                near.close()
                continue
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1], seen


def test_garbage_at_the_port_hurts_nobody(cluster: Cluster) -> None:
    leader = cluster.start(0)
    greeting = bytes.fromhex("ff00000000000000017f03") + b"\0CURVE".ljust(53, b"\0")
    claim = greeting + b"\x06" + (2**62).to_bytes(8, "big")  # a command of 4 exabytes
    for data in [b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), greeting, claim, b"\xff" * 64, b""]:
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", cluster.ports[0]), timeout=5) as raw:
                    raw.sendall(data)
                break
            except ConnectionRefusedError:  # the leader is about to listen
                assert time.monotonic() < deadline
                time.sleep(0.05)
    cluster.works(leader)


# bad input


def refusal(options: TransportOptions) -> str:
    with pytest.raises(BadInput) as caught:
        make_zmq(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_port_in_use_is_one_line(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", cluster.ports[0])):
        text = refusal(cluster.options(0))
    assert f"127.0.0.1:{cluster.ports[0]}" in text
    assert "in use" in text


@pytest.mark.parametrize("address", ["", "127.0.0.1", "tcp://x", "ipc:///tmp/x", "tcp://h:99999", "tcp://127.0.0.1:0"])
def test_an_address_that_cannot_be_used_is_one_line(cluster: Cluster, address: str) -> None:
    peers = [Peer(address, cluster.keys[0]), cluster.options(0).peers[1]]
    assert f"'{address}'" in refusal(cluster.options(0, peers=peers))
    assert f"'{address}'" in refusal(cluster.options(1, peers=peers))


def test_keys_that_are_missing_or_wrong_are_one_line(cluster: Cluster, tmp_path: Path) -> None:
    assert "--keys" in refusal(cluster.options(0, keys=None))
    assert "pac keys new" in refusal(cluster.options(0, keys=tmp_path / "nowhere"))
    assert "allow-list" in refusal(cluster.options(0, cluster="office"))
    peers = cluster.options(0).peers
    assert "another one" in refusal(cluster.options(0, peers=[Peer(peers[0].address, peers[1].key), peers[1]]))
    assert "allow-list" in refusal(cluster.options(0, peers=[peers[0], Peer(peers[1].address, new_keys().public)]))
    (cluster.folders[0].path / "device.secret").chmod(0o644)
    assert "chmod 600" in refusal(cluster.options(0))
    assert "rank 7" in refusal(replace(cluster.options(0), rank=7))


def test_devices_that_close_at_the_same_time_wait_for_nobody(tmp_path: Path) -> None:
    """libzmq dials a peer that is gone again for as long as something is left for it, which hung every fifth run."""
    folders = [KeyFolder(tmp_path / str(rank)) for rank in range(4)]
    keys = [folder.make("device", new_keys) for folder in folders]
    for folder in folders:
        for rank, key in enumerate(keys):
            folder.allow(key, f"device{rank}", "home")

    def closed(rank: int, peers: list[Peer]) -> float:
        transport = make_zmq(TransportOptions(rank, peers, keys=folders[rank].path, timeout=60))
        transport.barrier()
        began = time.monotonic()
        transport.close()
        return time.monotonic() - began

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            peers = [Peer(f"tcp://127.0.0.1:{free_port()}", key) for key in keys]
            assert max(pool.map(closed, range(4), [peers] * 4)) < 5
