"""One ROUTER for the devices that connect to this one, and a DEALER to each that this one connects to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence

import zmq

from pac_core.contracts.transport import TransportOptions
from pac_core.wire import Buffer, Kind, pack_head
from pac_plugins.transports.curve import Curve
from pac_plugins.transports.greeting import Identity, refusal
from pac_plugins.transports.link import Handed, Link, Sent
from pac_plugins.transports.zmq_basics import read_all
from pac_plugins.transports.zmq_join import Join, Joined
from pac_plugins.transports.zmq_sockets import Sockets

_BATCH = 16  # pieces read from one socket before others get their turn
_COPY_BELOW = 1 << 16  # bytes from which a frame's memory is handed to libzmq instead of copied
_RETRY = 0.0005  # seconds between attempts to send to a peer whose pipe is full; a ROUTER cannot be waited for
_PROBE = 0.02  # seconds between probes of a ROUTER's peers after one of them disconnected
_PROBING = 1.0  # seconds that this goes on
_DRAINING = 60.0  # seconds that a peer may take to accept what it was sent, once this device leaves
_LEAVING = 0.5  # seconds for what libzmq is done with to reach the network


class ZmqLink(Link):
    """Pieces as multipart messages.

    Args:
        identity: of this device.
        options: peers, and the time-out for connecting.
        curve: keys; None to do without encryption and authentication, for measurements.
    """

    def __init__(self, identity: Identity, options: TransportOptions, curve: Curve | None) -> None:
        self._sockets = Sockets(curve)
        try:
            joined = Join(self._sockets, identity, options, keyed=curve is not None).run()
        except BaseException:
            self._sockets.close(1.0)  # long enough to tell a peer why it is refused
            raise
        self._joined: Joined = joined
        self._ranks = {name: rank for rank, name in joined.names.items()}
        self._last: dict[int, zmq.MessageTracker] = {}
        self._broken: dict[int, str] = {}  # peers whose connection broke, who may still have sent something before
        self._lost: dict[int, str] = {}
        self._probe_until = 0.0

    def send(self, peer: int, frames: Sequence[Buffer]) -> Handed | None:
        if peer in self._broken:
            return None
        socket, name = self._joined.way_to(peer)
        try:
            if name is not None:
                socket.send(name, zmq.SNDMORE | zmq.NOBLOCK)
            for index, frame in enumerate(frames):
                more = zmq.SNDMORE if index + 1 < len(frames) else 0
                self._send_frame(peer, socket, frame, more | zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            self._broken[peer] = f"the connection broke ({error})"
            return None
        return self._last.get(peer) or Sent()

    def _send_frame(self, peer: int, socket: zmq.Socket[bytes], frame: Buffer, flags: int) -> None:
        if memoryview(frame).nbytes < _COPY_BELOW:
            socket.send(frame, flags)
        else:  # frames leave in order, so the last one handed over stands for those before it
            self._last[peer] = socket.send(frame, flags, copy=False, track=True)

    def receive(self, seconds: float, blocked: Collection[int]) -> list[tuple[int, list[Buffer]]]:
        now = time.monotonic()
        if blocked:
            seconds = min(seconds, _RETRY)
        if self._broken.keys() - self._lost.keys() or now < self._probe_until:
            seconds = min(seconds, _PROBE)
        found: list[tuple[int, list[Buffer]]] = []
        ready = self._sockets.wait(seconds)
        if self._sockets.router in ready:
            found += self._read_router()
        for rank, dealer in self._joined.dealers.items():
            if dealer in ready:
                found += [(rank, list(map(_memory, frames))) for frames in read_all(dealer, _BATCH)]
        self._note_breaks()
        if not found:
            self._lost |= self._broken  # and nothing is left of what they sent before
            if now < self._probe_until:
                self._probe()
        return found

    def _read_router(self) -> list[tuple[int, list[Buffer]]]:
        found: list[tuple[int, list[Buffer]]] = []
        for name, *frames in read_all(self._sockets.router, _BATCH):
            rank = self._ranks.get(name.bytes)
            if rank is not None:
                found.append((rank, list(map(_memory, frames))))
                continue
            with contextlib.suppress(zmq.ZMQError):  # whoever it is, it has been let in, but too late
                self._sockets.router.send_multipart([name.bytes, refusal("the job has begun")], zmq.NOBLOCK)
        return found

    def _note_breaks(self) -> None:
        for event in self._sockets.events():
            if event.disconnected and event.rank is None:
                self._probe_until = time.monotonic() + _PROBING
            elif event.disconnected:
                self._broken.setdefault(event.rank, "its process ended, or the connection broke")

    def _probe(self) -> None:
        """Find out which peer of the ROUTER is gone: sending to it is an error."""
        for rank, name in self._joined.names.items():
            if rank not in self._broken and not self._sockets.reachable(name):
                self._broken[rank] = "its process ended, or the connection broke"

    def lost(self) -> Mapping[int, str]:
        return self._lost

    def forget(self, peer: int) -> None:
        self._broken.setdefault(peer, "it is lost")

    def wake(self) -> None:
        self._sockets.waker.wake()

    def close(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._drain(until)
        left = min(max(until - time.monotonic(), 0.0), _LEAVING)
        lingers = {dealer: 0.0 if rank in self._broken else left for rank, dealer in self._joined.dealers.items()}
        self._sockets.close(seconds, lingers)

    def _drain(self, until: float) -> None:
        """Return once libzmq is done with what was sent to peers that this device dialled, and a moment has passed in
        which they may end too: for as long as it has something for a peer that is gone, libzmq would dial again."""
        marks: dict[int, zmq.MessageTracker] = {}
        until, settled = min(until, time.monotonic() + _DRAINING), time.monotonic() + _PROBE
        left = self._joined.dealers.keys() - self._broken.keys()
        while (left or time.monotonic() < settled) and time.monotonic() < until:
            for rank in left - marks.keys():
                with contextlib.suppress(zmq.Again):
                    head = pack_head(Kind.BEAT)
                    marks[rank] = self._joined.dealers[rank].send(head, zmq.NOBLOCK, copy=False, track=True)
            self._sockets.wait(0.0)
            self._note_breaks()
            left = {rank for rank in left - self._broken.keys() if rank not in marks or not marks[rank].done}
            time.sleep(_RETRY)


def _memory(frame: zmq.Frame) -> memoryview:
    return frame.buffer
