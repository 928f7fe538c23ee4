"""Rates of the transports: messages of 4 MiB, and round trips of small ones.

    python benchmarks/transports.py [--mib 2048] [--mbits 128 1000] [--turns 3] [--output transports.json]

First on the loopback interface, with all transports of one machine; then, as root, between two network namespaces whose
link is shaped to each of ``--mbits`` (``tc tbf``): there a socket and the zmq transport send for some 4 seconds. Of
several turns each figure is the median. ``bare socket`` is a TCP socket with nothing around it, ``zmq, plain`` the zmq
transport without keys, ``zmq`` as it is used. Sender and receiver are two processes, so a machine of two cores is full.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.keys import KeyFolder
from pac_core.testing.hosts import Host, network, reason_against
from pac_plugins.transports import make_local, make_zmq, new_keys
from pac_plugins.transports.framed import FramedTransport
from pac_plugins.transports.greeting import Identity
from pac_plugins.transports.zmq_link import ZmqLink

MESSAGE = 4 << 20
AHEAD = 8
ROUNDS = 2000
SHAPED_SECONDS = 4

_fork = multiprocessing.get_context("fork")


def make_plain(options: TransportOptions) -> Transport:
    """The zmq transport without CURVE; for this comparison only."""
    identity = Identity.of(options)
    return FramedTransport(ZmqLink(identity, options, None), identity.rank, identity.size, options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare(rank: int, host: str, port: int, count: int) -> tuple[float, float]:
    """Bytes a second and seconds a round trip of a TCP socket, as seen by rank 0."""
    if rank == 0:
        with socket.create_server((host, port)) as server:
            connection = server.accept()[0]
    else:
        while True:
            try:
                connection = socket.create_connection((host, port))
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


def measure(work: Callable[[int], tuple[float, float]], hosts: Sequence[Host] = ()) -> tuple[float, float]:
    """Run ``work`` for ranks 0 and 1, each in a process, on these hosts if there are any; what rank 0 returned."""

    def child(rank: int, pipe: Connection) -> None:
        torch.set_num_threads(1)
        if hosts:
            hosts[rank].enter()
        pipe.send(work(rank))

    pipes = [_fork.Pipe(duplex=False) for _ in range(2)]
    processes = [_fork.Process(target=child, args=(rank, pipe[1])) for rank, pipe in enumerate(pipes)]
    for process in processes:
        process.start()
    found: tuple[float, float] = pipes[0][0].recv()
    for process in processes:
        process.join()
    return found


class Devices:
    """Two devices with keys of their own, in files below ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = [KeyFolder(path / str(rank)) for rank in range(2)]
        self.keys = [folder.make(f"device{rank}", new_keys) for rank, folder in enumerate(self.folders)]
        for folder in self.folders:
            for rank, key in enumerate(self.keys):
                folder.allow(key, f"device{rank}", "home")

    def through(
        self,
        make: Callable[[TransportOptions], Transport],
        addresses: Sequence[str],
        count: int,
        hosts: Sequence[Host] = (),
    ) -> tuple[float, float]:
        """As `talk`, over the transports that ``make`` makes."""
        peers = [Peer(address, key) for address, key in zip(addresses, self.keys)]
        options = [TransportOptions(rank=r, peers=peers, keys=self.folders[r].path, timeout=300) for r in range(2)]
        return measure(lambda rank: talk(make(options[rank]), count), hosts)


def loopback(devices: Devices, count: int) -> dict[str, tuple[float, float]]:
    """All transports of one machine."""
    port = free_port()
    sockets = [str(devices.path / name) for name in ("a", "b")]

    def tcp() -> list[str]:
        return [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]

    return {
        "bare socket": measure(lambda rank: bare(rank, "127.0.0.1", port, count)),
        "local": devices.through(make_local, sockets, count),
        "zmq, plain": devices.through(make_plain, tcp(), count),
        "zmq": devices.through(make_zmq, tcp(), count),
    }


def over_link(devices: Devices, mbits: int) -> dict[str, tuple[float, float]]:
    """A socket and the zmq transport over a shaped link."""
    count = max(AHEAD, SHAPED_SECONDS * mbits * 125_000 // MESSAGE)
    with network(2) as made:
        made.shape(mbits)
        addresses = [f"tcp://{host.address}:7778" for host in made.hosts]
        return {
            "bare socket": measure(lambda rank: bare(rank, made.hosts[0].address, 7777, count), made.hosts),
            "zmq": devices.through(make_zmq, addresses, count, made.hosts),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="MiB to send over the loopback interface")
    parser.add_argument("--mbits", type=int, nargs="*", default=[128, 1000], help="rates of shaped links")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    reason = reason_against() if arguments.mbits else None
    rates = arguments.mbits if reason is None else []
    if reason is not None:
        print(f"no shaped links: {reason}", file=sys.stderr)
    turns: list[dict[str, dict[str, tuple[float, float]]]] = []
    with tempfile.TemporaryDirectory() as folder:
        devices = Devices(Path(folder))
        for _ in range(arguments.turns):
            turn = {"loopback": loopback(devices, max(AHEAD, (arguments.mib << 20) // MESSAGE))}
            turns.append(turn | {f"{mbits} Mbit/s": over_link(devices, mbits) for mbits in rates})
    found = {
        link: {name: medians([turn[link][name] for turn in turns]) for name in turns[0][link]} for link in turns[0]
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for link, rows in found.items():
        print(f"{link:24} {'4 MiB messages':>16} {'of the socket':>14} {'round trip':>12}")
        for name, row in rows.items():
            part = row["bytes_per_second"] / rows["bare socket"]["bytes_per_second"]
            rate, trip = row["bytes_per_second"] / 1e6, row["round_trip"] * 1e6
            print(f"  {name:22} {rate:11,.1f} MB/s {part:14.1%} {trip:9.0f} us")


def medians(turns: Sequence[tuple[float, float]]) -> dict[str, float]:
    rates, trips = zip(*turns)
    return {"bytes_per_second": statistics.median(rates), "round_trip": statistics.median(trips)}


if __name__ == "__main__":
    main()
