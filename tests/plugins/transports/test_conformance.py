"""The bundled transports pass the public suite."""

import itertools
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.keys import KeyFolder
from pac_core.testing import TransportSuite
from pac_plugins.transports import make_local, make_torch, make_zmq, new_keys

_jobs = itertools.count()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses."""
    with_ports = [socket.socket() for _ in range(count)]
    for each in with_ports:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in with_ports]
    for each in with_ports:
        each.close()
    return ports


class TestLocal(TransportSuite):
    def make_options(self, tmp_path: Path, size: int, **changes: Any) -> list[TransportOptions]:
        job = next(_jobs)
        peers = [Peer(str(tmp_path / f"{job}-{rank}")) for rank in range(size)]
        return [TransportOptions(rank=rank, peers=peers, **changes) for rank in range(size)]

    def make_transport(self, options: TransportOptions) -> Transport:
        return make_local(options)


class TestZmq(TransportSuite):
    def make_options(self, tmp_path: Path, size: int, **changes: Any) -> list[TransportOptions]:
        pytest.importorskip("zmq")
        folders = [KeyFolder(tmp_path / f"keys {next(_jobs)}") for _ in range(size)]
        keys = [folder.make(f"device{rank}", new_keys) for rank, folder in enumerate(folders)]
        for folder, (rank, key) in itertools.product(folders, enumerate(keys)):
            folder.allow(key, f"device{rank}", "home")
        peers = [Peer(f"tcp://127.0.0.1:{port}", key) for port, key in zip(free_ports(size), keys)]
        return [TransportOptions(rank=r, peers=peers, keys=folders[r].path, **changes) for r in range(size)]

    def make_transport(self, options: TransportOptions) -> Transport:
        return make_zmq(options)


class TestTorch(TransportSuite):
    """With the variables that torchrun sets; torchrun itself is in test_torch.py."""

    def make_options(self, tmp_path: Path, size: int, **changes: Any) -> list[TransportOptions]:
        peers = [Peer(str(port)) for port in free_ports(1) * size]
        return [TransportOptions(rank=rank, peers=peers, **changes) for rank in range(size)]

    def make_transport(self, options: TransportOptions) -> Transport:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": options.peers[0].address}
        os.environ.update(place, RANK=str(options.rank), WORLD_SIZE=str(len(options.peers)))
        return make_torch(options)
