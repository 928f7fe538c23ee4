"""How devices find each other over ZeroMQ: each greets those of lower rank, and waits until all are there."""

from __future__ import annotations

import contextlib
import socket as sockets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq

from pac_core.addresses import join_address, split_address
from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.errors import BadInput, Refused, TransportTimeout
from pac_core.wire import Kind, WireError, pack_head
from pac_plugins.transports.greeting import Identity, check_answer, refusal
from pac_plugins.transports.zmq_sockets import Event, Sockets

_HANDSHAKES = 5  # that fail before it is believed that they always will
_REST_SECONDS = 30.0  # for the other connections once device 0, and so every device, is known to be at work


@dataclass
class Joined:
    """Ways to the peers.

    Attributes:
        router: where devices of higher rank have connected.
        names: what the router calls them.
        dealers: to the devices of lower rank.
    """

    router: zmq.Socket[bytes]
    names: dict[int, bytes] = field(default_factory=dict)
    dealers: dict[int, zmq.Socket[bytes]] = field(default_factory=dict)

    def way_to(self, rank: int) -> tuple[zmq.Socket[bytes], bytes | None]:
        """The socket to send to, and the frame that must go first, if one must."""
        if rank in self.dealers:
            return self.dealers[rank], None
        return self.router, self.names[rank]


class Join:
    """Connects to all peers.

    A device is welcomed once all that connect to this one are there, so nobody sends anything else before.
    """

    def __init__(self, sockets: Sockets, identity: Identity, options: TransportOptions, *, keyed: bool) -> None:
        self._sockets = sockets
        self._identity = identity
        self._peers: Sequence[Peer] = options.peers
        self._keyed = keyed
        self._deadline = time.monotonic() + options.timeout
        self._joined = Joined(sockets.router)
        self._awaited = set(range(identity.rank))  # whose welcome has not come
        self._failures: Counter[int | None] = Counter()
        self._note = ""

    def run(self) -> Joined:
        """Return once all are connected.

        Raises:
            BadInput, Refused, TransportTimeout: as of `ZmqTransport`.
        """
        self._open()
        higher = self._identity.size - 1 - self._identity.rank
        welcomed = False
        while self._awaited or not welcomed:
            ready = self._sockets.wait(0.1)
            for event in self._sockets.events():
                self._heed(event)
            if not welcomed and self._sockets.router in ready:
                self._greet()
            elif welcomed and self._sockets.router in ready:
                time.sleep(0.002)  # what is there is for later, when all have been welcomed
            for rank in [rank for rank in self._awaited if self._joined.dealers[rank] in ready]:
                self._hear(rank)
            if not welcomed and len(self._joined.names) == higher:
                welcomed = True
                for name in self._joined.names.values():
                    self._sockets.router.send_multipart([name, pack_head(Kind.WELCOME)])
            self._check_time()
        return self._joined

    def _open(self) -> None:
        address = self._peers[self._identity.rank].address
        try:
            self._sockets.router.bind(_to_bind(address))
        except zmq.ZMQError as error:
            reason = zmq.strerror(error.errno or 0)
            raise BadInput(f"cannot listen at {address}: {reason}; choose another port or address") from error
        for rank in range(self._identity.rank):
            split_address(self._peers[rank].address)
            dealer = self._sockets.dealer(rank, self._peers[rank].key)
            dealer.connect(self._peers[rank].address)
            self._joined.dealers[rank] = dealer

    def _heed(self, event: Event) -> None:
        rank = event.rank
        if rank is None or rank not in self._awaited:
            return
        address = self._peers[rank].address
        if event.what == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._joined.dealers[rank].send(self._identity.hello(), zmq.NOBLOCK)
        elif event.what == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise Refused(f"device {rank} at {address} does not let this device's key in; there: pac keys allow FILE")
        elif event.failed:
            self._failures[rank] += 1
            if self._failures[rank] == _HANDSHAKES:
                raise Refused(f"what listens at {address} does not have the key of device {rank}, or speaks no CURVE")

    def _greet(self) -> None:
        with contextlib.suppress(zmq.Again):
            name, *frames = self._sockets.router.recv_multipart(zmq.NOBLOCK, copy=False)
            try:
                rank, reason = self._identity.judge([frame.buffer for frame in frames])
            except WireError:
                return  # it will get no welcome
            key = str(frames[0].get("User-Id")) if self._keyed else ""
            impostor = 0 <= rank < len(self._peers) and key != self._peers[rank].key and self._keyed
            if impostor:
                reason = f"device {rank} is to have another key"
            if not reason:
                self._joined.names[rank] = name.bytes
                return
            self._sockets.router.send_multipart([name.bytes, refusal(reason)], zmq.NOBLOCK)
            self._note = f"; device {rank} was refused: {reason}"
            if not impostor:
                raise Refused(f"device {rank} cannot take part: {reason}")

    def _hear(self, rank: int) -> None:
        frames = self._joined.dealers[rank].recv_multipart(zmq.NOBLOCK)
        try:
            check_answer(rank, frames)
        except WireError as error:
            raise Refused(f"device {rank} at {self._peers[rank].address} is no device of this job: {error}") from error
        self._awaited.discard(rank)
        if rank == 0:
            self._deadline = min(self._deadline, time.monotonic() + _REST_SECONDS)

    def _check_time(self) -> None:
        if time.monotonic() < self._deadline:
            return
        higher = set(range(self._identity.rank + 1, self._identity.size)) - self._joined.names.keys()
        own = self._peers[self._identity.rank].address
        found = [f"device {rank} did not come to {own}" for rank in sorted(higher)]
        found += [f"device {rank} was not reached at {self._peers[rank].address}" for rank in sorted(self._awaited)]
        if found:
            raise TransportTimeout(f"{' and '.join(found)} in time{self._note}; a firewall may be in between")


def _to_bind(address: str) -> str:
    """The address with a number for the host, which libzmq asks for where it listens."""
    host, port = split_address(address)
    try:
        found = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)
    except OSError as error:
        raise BadInput(f"host '{host}' of address '{address}' is not known: {error}") from error
    return join_address(str(found[0][4][0]), port)
