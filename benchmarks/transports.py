"""Rates of the transports on the loopback interface: messages of 4 MiB, and round trips of small ones.

    python benchmarks/transports.py [--mib 2048] [--json]

``bare`` is a TCP socket with nothing around it, ``zmq, plain`` the zmq transport without keys, ``zmq`` as it is used.
Sender and receiver are two processes, so a machine of two cores is full.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.keys import KeyFolder
from pac_plugins.transports import make_local, make_zmq, new_keys
from pac_plugins.transports.framed import FramedTransport
from pac_plugins.transports.greeting import Identity
from pac_plugins.transports.zmq_link import ZmqLink

MESSAGE = 4 << 20
AHEAD = 8
ROUNDS = 2000

_fork = multiprocessing.get_context("fork")


def make_plain(options: TransportOptions) -> Transport:
    """The zmq transport without CURVE; for this comparison only."""
    identity = Identity.of(options)
    return FramedTransport(ZmqLink(identity, options, None), identity.rank, identity.size, options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare(rank: int, port: int, count: int) -> tuple[float, float]:
    """Bytes a second and seconds a round trip of a TCP socket, as seen by rank 0."""
    if rank == 0:
        with socket.create_server(("127.0.0.1", port)) as server:
            connection = server.accept()[0]
    else:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = memoryview(bytearray(MESSAGE))
    with connection:
        connection.sendall(b"x") if rank else connection.recv(1)
        begun = time.perf_counter()
        for _ in range(count):
            if rank:
                connection.sendall(data)
            else:
                at = 0
                while at < MESSAGE:
                    at += connection.recv_into(data[at:])
        rate = count * MESSAGE / (time.perf_counter() - begun)
        begun = time.perf_counter()
        for _ in range(ROUNDS):
            if rank:
                connection.sendall(connection.recv(1))
            else:
                connection.sendall(b"x")
                connection.recv(1)
        return rate, (time.perf_counter() - begun) / ROUNDS


def talk(transport: Transport, count: int) -> tuple[float, float]:
    """The same with a transport; receives are posted ahead."""
    there, back = Tag("forward"), Tag("backward")
    with transport as t:
        data = {"x": torch.zeros(MESSAGE, dtype=torch.uint8)}
        t.barrier()
        begun = time.perf_counter()
        if t.rank:
            sends = [t.isend(0, Message(there, {}, data)) for _ in range(count)]
            for send in sends:
                send.wait()
        else:
            works = [t.irecv(1, there) for _ in range(AHEAD)]
            for n in range(count):
                works.pop(0).wait()
                if n + AHEAD < count:
                    works.append(t.irecv(1, there))
        rate = count * MESSAGE / (time.perf_counter() - begun)
        t.barrier()
        begun = time.perf_counter()
        work = t.irecv(1 - t.rank, back)
        for _ in range(ROUNDS):
            if t.rank:
                work.wait()
            else:
                t.isend(1, Message(back))
                work.wait()
            work = t.irecv(1 - t.rank, back)
            if t.rank:
                t.isend(0, Message(back))
        trip = (time.perf_counter() - begun) / ROUNDS
        t.barrier()
        return rate, trip


def measure(work: Callable[[int], tuple[float, float]]) -> tuple[float, float]:
    """Run ``work`` for ranks 0 and 1, each in a process; what rank 0 returned."""

    def child(rank: int, pipe: Connection) -> None:
        torch.set_num_threads(1)
        pipe.send(work(rank))

    pipes = [_fork.Pipe(duplex=False) for _ in range(2)]
    processes = [_fork.Process(target=child, args=(rank, pipe[1])) for rank, pipe in enumerate(pipes)]
    for process in processes:
        process.start()
    found: tuple[float, float] = pipes[0][0].recv()
    for process in processes:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="MiB to send, in messages of 4 MiB")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    count = max(AHEAD, (arguments.mib << 20) // MESSAGE)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), count)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'':12} {'4 MiB messages':>16} {'round trip':>12}")
    for name, row in rows.items():
        print(f"{name:12} {row['bytes_per_second'] / 1e6:11,.0f} MB/s {row['round_trip'] * 1e6:9.0f} us")


def run(path: Path, count: int) -> dict[str, Any]:
    """Measure everything."""
    folders = [KeyFolder(path / str(rank)) for rank in range(2)]
    keys = [folder.make(f"device{rank}", new_keys) for rank, folder in enumerate(folders)]
    for folder in folders:
        for rank, key in enumerate(keys):
            folder.allow(key, f"device{rank}", "home")

    def through(make: Callable[[TransportOptions], Transport], addresses: list[str]) -> tuple[float, float]:
        peers = [Peer(address, key) for address, key in zip(addresses, keys)]
        options = [TransportOptions(rank=r, peers=peers, keys=folders[r].path, timeout=300) for r in range(2)]
        return measure(lambda rank: talk(make(options[rank]), count))

    def tcp() -> list[str]:
        return [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]

    port = free_port()
    found = {
        "bare socket": measure(lambda rank: bare(rank, port, count)),
        "local": through(make_local, [str(path / "a"), str(path / "b")]),
        "zmq, plain": through(make_plain, tcp()),
        "zmq": through(make_zmq, tcp()),
    }
    return {name: {"bytes_per_second": rate, "round_trip": trip} for name, (rate, trip) in found.items()}


if __name__ == "__main__":
    main()
