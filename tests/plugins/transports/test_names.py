"""What transports are called, and what is said where one cannot be had."""

import importlib.util
import socket
from pathlib import Path

import pytest

from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.errors import BadInput
from pac_core.registry import Registry
from pac_plugins import transports


def test_the_bundled_transports_are_registered() -> None:
    registry = Registry()
    assert {"local", "torch", "zmq"} <= set(registry.names("transports"))
    for name in ("local", "torch", "zmq"):
        assert registry.get("transports", name) is getattr(transports, f"make_{name}")
    assert registry.get("transports", "zmq").new_keys is transports.new_keys  # type: ignore[attr-defined]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: transports.make_zmq(TransportOptions()), transports.new_keys):
        with pytest.raises(BadInput, match=r'pip install "pac-core\[zmq\]"'):
            call()


def test_local_addresses_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(taken))
        listener.listen()
        for path in (taken, tmp_path / "no folder" / "x", tmp_path / ("x" * 200)):
            with pytest.raises(BadInput, match="cannot listen at") as caught:
                transports.make_local(TransportOptions(rank=0, peers=[Peer(str(path)), Peer("other")]))
            assert "\n" not in str(caught.value)
    assert taken.exists(), "what somebody else listens at is left alone"
    with pytest.raises(BadInput, match="rank None"):
        transports.make_local(TransportOptions(peers=[Peer("a"), Peer("b")]))


def test_a_socket_file_left_by_a_killed_device_is_no_obstacle(tmp_path: Path) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    assert left.exists()
    with transports.make_local(TransportOptions(rank=0, peers=[Peer(str(left))])) as alone:
        alone.barrier()
        assert alone.size == 1
    assert not left.exists()
