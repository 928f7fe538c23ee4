"""The sockets of a `ZmqLink`, what happens to their connections, and one place to wait for all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import zmq
from zmq.utils.monitor import recv_monitor_message

from pac_core.wire import HEAD_BYTES, PIECE_BYTES, Kind, pack_head
from pac_plugins.transports.curve import Complaints, Curve, Gatekeeper
from pac_plugins.transports.waker import Waker
from pac_plugins.transports.zmq_basics import EVENTS, FAILED, HANDSHAKE_MS

_PIECES_QUEUED = 8  # in each direction of a connection; bounds memory, and is enough for full speed


@dataclass(frozen=True)
class Event:
    """Something that happened to a connection.

    Attributes:
        rank: of the device that was connected to; None where a device connected to this one.
        what: a ``zmq.EVENT_*``.
    """

    rank: int | None
    what: int

    @property
    def disconnected(self) -> bool:
        """The connection is gone."""
        return self.what == zmq.EVENT_DISCONNECTED

    @property
    def failed(self) -> bool:
        """The two ends could not agree on keys, or one of them is no ZeroMQ socket with CURVE."""
        return bool(self.what & FAILED)


class Sockets:
    """A ROUTER, and as many DEALERs as are asked for. For one thread, but for ``waker``.

    Attributes:
        router: not bound yet.
        waker: makes `wait` return.
    """

    def __init__(self, curve: Curve | None) -> None:
        self._curve = curve
        self._complain = Complaints()
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._monitors: dict[zmq.Socket[bytes], int | None] = {}
        self._data: list[zmq.Socket[bytes]] = []
        self._events: list[Event] = []
        self.waker = Waker()
        self._poller.register(self.waker.fileno(), zmq.POLLIN)
        self._gatekeeper = None if curve is None else Gatekeeper(self._context, curve)
        if self._gatekeeper is not None:
            self._poller.register(self._gatekeeper.socket, zmq.POLLIN)
        self.router = self._add(zmq.ROUTER, None)
        self.router.router_mandatory = True
        if curve is not None:
            curve.serve(self.router)

    def dealer(self, rank: int, key: str) -> zmq.Socket[bytes]:
        """A socket to connect to the device that has this key."""
        socket = self._add(zmq.DEALER, rank)
        if self._curve is not None:
            self._curve.call(socket, key)
        return socket

    def _add(self, kind: int, rank: int | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.sndhwm = socket.rcvhwm = _PIECES_QUEUED
        socket.maxmsgsize = HEAD_BYTES + PIECE_BYTES  # of a frame; a peer that announces more is disconnected
        socket.handshake_ivl = HANDSHAKE_MS
        socket.ipv6 = True
        monitor = socket.get_monitor_socket(EVENTS)
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        self._monitors[monitor] = rank
        self._data.append(socket)
        return socket

    def wait(self, seconds: float) -> set[zmq.Socket[bytes]]:
        """Wait until something happens; returns the sockets that have something to read."""
        ready = dict(self._poller.poll(math.ceil(seconds * 1000)))
        if self.waker.fileno() in ready:
            self.waker.clear()
        if self._gatekeeper is not None and self._gatekeeper.socket in ready:
            self._gatekeeper.answer()
        for monitor, rank in self._monitors.items():
            if monitor in ready:
                self._note(Event(rank, recv_monitor_message(monitor)["event"]))
        return {socket for socket in self._data if socket in ready}

    def _note(self, event: Event) -> None:
        self._events.append(event)
        if event.rank is None and event.failed:
            self._complain("refused a connection: it has a wrong key for this device, or does not speak CURVE")

    def events(self) -> list[Event]:
        """What happened to connections since the last call."""
        events, self._events = self._events, []
        return events

    def reachable(self, name: bytes) -> bool:
        """Whether a device that connected to the ROUTER still is connected."""
        try:
            self.router.send_multipart([name, pack_head(Kind.BEAT)], zmq.NOBLOCK)
        except zmq.Again:
            return True
        except zmq.ZMQError:
            return False
        return True

    def close(self, seconds: float, lingers: Mapping[zmq.Socket[bytes], float] = MappingProxyType({})) -> None:
        """Send what is queued, for so long at most, by some sockets for as long as ``lingers`` says; and release
        everything."""
        for socket in self._data:
            socket.disable_monitor()
            socket.close(linger=math.ceil(lingers.get(socket, seconds) * 1000))
        for monitor in self._monitors:
            monitor.close(linger=0)
        if self._gatekeeper is not None:
            self._gatekeeper.socket.close(linger=0)
        self._context.term()
        self.waker.close()
