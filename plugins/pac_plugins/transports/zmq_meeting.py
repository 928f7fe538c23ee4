"""Leader and workers over ZeroMQ with CURVE: what both ends share, and the leader's."""

from __future__ import annotations

import math
import socket as sockets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from pac_core.addresses import join_address, split_address
from pac_core.contracts.meeting import (
    MESSAGE_BYTES,
    Came,
    Event,
    Left,
    Meeting,
    MeetingOptions,
    Said,
    pack_message,
    unpack_message,
)
from pac_core.errors import BadInput
from pac_plugins.transports.curve import Complaints, Curve, Gatekeeper
from pac_plugins.transports.zmq_basics import EVENTS, HANDSHAKE_MS, read_all

Socket = zmq.Socket[bytes]

BEAT = b""
"""Frame that finds out whether the other end is there; no answer."""

LATER = b"\xc0"
"""Frame that asks a worker to hang up and come again later."""

BATCH = 64  # messages read at a time, and queued in each direction
_PROBE = 0.02  # seconds between probes of workers after one of them disconnected
_PROBING = 1.0  # seconds that this goes on
_STRANGERS = 1024  # connections remembered that were cut off

GARBLED = "it sent what no device of PAC sends"


def open_socket(context: zmq.Context[Socket], kind: int, silence: float) -> Socket:
    """A socket for messages of a meeting, whose ends look for signs of life by themselves."""
    socket = context.socket(kind)
    socket.maxmsgsize = MESSAGE_BYTES  # of a frame; who announces more is disconnected
    socket.sndhwm = socket.rcvhwm = BATCH
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = math.ceil(silence * 250)
    socket.heartbeat_timeout = math.ceil(silence * 1000)
    socket.ipv6 = True
    return socket


def happened(monitor: Socket) -> list[int]:
    """What a monitor has to tell."""
    found: list[int] = []
    while monitor.poll(0):
        found.append(int(recv_monitor_message(monitor)["event"]))
    return found


class HostMeeting(Meeting):
    """The leader's end: a ROUTER, and the name and key of each connection that has said something."""

    def __init__(self, options: MeetingOptions) -> None:
        self._curve = Curve.open(options.keys, options.cluster)
        if not self._curve.allowed():
            raise BadInput(
                f"nobody is on the allow-list of cluster '{options.cluster}' in {options.keys}; put the workers there "
                "with 'pac keys allow'"
            )
        self._names: dict[bytes, str] = {}
        self._ids: dict[str, bytes] = {}
        self._keys: dict[str, str] = {}
        self._cut: set[bytes] = set()
        self._probe_until = 0.0
        self._complain = Complaints()
        self._closed = False
        (address,) = options.addresses
        with ExitStack() as undo:
            self._context = zmq.Context()
            undo.callback(self._context.destroy, linger=0)
            self._gatekeeper = Gatekeeper(self._context, self._curve)
            self._router = open_socket(self._context, zmq.ROUTER, options.silence)
            self._router.router_mandatory = True
            self._curve.serve(self._router)
            self._monitor = self._router.get_monitor_socket(EVENTS)
            _bind(self._router, address)
            self._announced = _announce(options, address, self._curve) if options.discovery else ExitStack()
            undo.pop_all()
        self._poller = zmq.Poller()
        for socket in (self._gatekeeper.socket, self._router, self._monitor):
            self._poller.register(socket, zmq.POLLIN)

    def receive(self, seconds: float) -> list[Event]:
        until = time.monotonic() + seconds
        while True:
            found = self._step(max(until - time.monotonic(), 0.0))
            if found or time.monotonic() >= until:
                return found

    def _step(self, seconds: float) -> list[Event]:
        probing = time.monotonic() < self._probe_until
        ready = dict(self._poller.poll(math.ceil(1000 * (min(seconds, _PROBE) if probing else seconds))))
        if self._gatekeeper.socket in ready:
            self._gatekeeper.answer()
        for event in happened(self._monitor):
            if event == zmq.EVENT_DISCONNECTED:
                self._probe_until = time.monotonic() + _PROBING
        found = self._read()
        if not probing:
            return found
        gone = [name for name in self._ids if not self._reachable(name)]
        found += self._read()  # what they had said before
        return found + [self._forget(name, "its process ended, or the connection broke") for name in gone]

    def _read(self) -> list[Event]:
        found: list[Event] = []
        for who, *frames in read_all(self._router, BATCH):
            if who.bytes not in self._cut:
                found += self._hear(who.bytes, frames)
        return found

    def _hear(self, who: bytes, frames: list[zmq.Frame]) -> list[Event]:
        came = [] if who in self._names else self._admit(who, str(frames[0].get("User-Id")) if frames else "")
        name = self._names.get(who)
        if name is None:
            return []
        try:
            if len(frames) != 1:
                raise ValueError("a message has several frames")
            return [*came, Said(name, unpack_message(frames[0].buffer))]
        except ValueError as error:
            self._complain(f"device '{name}' is cut off: {GARBLED}: {error}")
            if len(self._cut) >= _STRANGERS:
                self._cut.clear()
            self._cut.add(who)
            return [*came, self._forget(name, GARBLED)]

    def _admit(self, who: bytes, key: str) -> list[Event]:
        name = self._curve.allowed().get(key)
        if name is None or (name in self._ids and self._reachable(name)):
            self._write(who, LATER)
            return []
        left: list[Event] = [self._forget(name, "it came again")] if name in self._ids else []
        self._names[who], self._ids[name], self._keys[name] = name, who, key
        return [*left, Came(name, name)]

    def _forget(self, name: str, reason: str) -> Left:
        self._names.pop(self._ids.pop(name, b""), None)
        return Left(name, reason)

    def _reachable(self, name: str) -> bool:
        return self._write(self._ids[name], BEAT) is not False

    def _write(self, who: bytes, data: bytes) -> bool | None:
        """Whether it was sent; None if the other end does not read."""
        try:
            self._router.send_multipart([who, data], zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError:
            return False
        return True

    def send(self, who: str, message: Mapping[str, Any]) -> bool:
        return who in self._ids and bool(self._write(self._ids[who], pack_message(message)))

    def key_of(self, who: str) -> str:
        return self._keys[who]

    def close(self, seconds: float) -> None:
        if self._closed:
            return
        self._closed = True
        self._announced.close()
        self._router.disable_monitor()
        self._router.close(linger=math.ceil(seconds * 1000))
        self._monitor.close(linger=0)
        self._gatekeeper.socket.close(linger=0)
        self._context.term()


def _bind(router: Socket, address: str) -> None:
    host, port = split_address(address)
    try:
        number = str(sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0][4][0])
        router.bind(join_address(number, port))  # libzmq asks for a number where it listens
    except zmq.ZMQError as error:
        hint = "; is another 'pac finetune' or 'pac devices' at work?" if error.errno == zmq.EADDRINUSE else ""
        raise BadInput(f"cannot listen at {address}: {zmq.strerror(error.errno or 0)}{hint}") from error
    except OSError as error:
        raise BadInput(f"host '{host}' of address '{address}' is not known: {error.strerror}") from error


def _announce(options: MeetingOptions, address: str, curve: Curve) -> ExitStack:
    from pac_plugins.transports.mdns import announce

    return announce(options.cluster, address, curve.own.public, options.interface)
