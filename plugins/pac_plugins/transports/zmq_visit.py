"""A worker's end of the connections to its leaders, over ZeroMQ with CURVE."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import zmq

from pac_core.addresses import split_address
from pac_core.contracts.meeting import Came, Event, Left, Meeting, MeetingOptions, Said, pack_message, unpack_message
from pac_core.errors import BadInput, Refused
from pac_plugins.transports.curve import Curve
from pac_plugins.transports.zmq_basics import EVENTS, FAILED, read_all
from pac_plugins.transports.zmq_meeting import (
    BATCH,
    GARBLED,
    LATER,
    Socket,
    happened,
    open_socket,
)

log = logging.getLogger("pac")

_ROUNDS = 5  # of all keys that must fail before it is believed that none fits
_LATER = 2.0  # seconds until a leader that asked to come later is dialled again
_AGAIN = 0.2  # seconds after a connection broke, or a key did not fit
_SLOWEST_MS = 2000  # between attempts while nobody listens
_LONGEST = 1.0  # seconds of a wait, since leaders may be found meanwhile


class VisitMeeting(Meeting):
    """A DEALER to each leader, which is opened again for each attempt.

    Which of the allowed keys a leader has is not known beforehand: they are tried in turn.
    """

    def __init__(self, options: MeetingOptions) -> None:
        self._curve, self._options = Curve.open(options.keys, options.cluster), options
        self._lines: dict[str, _Line] = {}
        self._closed = False
        for address in options.addresses:
            split_address(address)
        self._others()
        self._context = zmq.Context()
        self._browser = _browse(options) if options.discovery else None
        for address in options.addresses:
            self._lines[address] = _Line(address)

    def receive(self, seconds: float) -> list[Event]:
        until = time.monotonic() + seconds
        while True:
            self._discover()
            self._dial()
            poller = zmq.Poller()
            for line in self._lines.values():
                line.register(poller)
            poller.poll(math.ceil(1000 * self._pause(until)))
            found = [event for line in self._lines.values() for event in self._heed(line)]
            if found or time.monotonic() >= until:
                return found

    def _pause(self, until: float) -> float:
        now = time.monotonic()
        next_dial = min((line.dial_at for line in self._lines.values() if line.socket is None), default=now + _LONGEST)
        return max(min(until, next_dial, now + _LONGEST) - now, 0.0)

    def _others(self) -> dict[str, str]:
        """Names by key of those that may lead: all that are allowed but this device itself."""
        allowed = {key: name for key, name in self._curve.allowed().items() if key != self._curve.own.public}
        if not allowed:
            raise BadInput(
                f"no leader is on the allow-list of cluster '{self._options.cluster}' in {self._options.keys}; put its "
                "device.pub there with 'pac keys allow'"
            )
        return allowed

    def _discover(self) -> None:
        if self._browser is not None:
            for address in self._browser.found(self._others()):
                self._lines.setdefault(address, _Line(address))

    def _dial(self) -> None:
        now = time.monotonic()
        for line in self._lines.values():
            if line.socket is None and now >= line.dial_at:
                keys = sorted(self._others(), key=lambda key: key != line.fitting)  # what fitted before is first
                key = keys[line.failures % len(keys)]
                line.open(self._context, self._curve, key, self._options.silence)

    def _heed(self, line: _Line) -> list[Event]:
        if line.socket is None or line.monitor is None:
            return []
        found: list[Event] = []
        events = happened(line.monitor)
        for event in events:
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not line.came:
                line.came, line.failures, line.fitting = True, 0, line.key
                found.append(Came(line.address, self._others().get(line.key, "")))
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise Refused(
                    f"the leader at {line.address} does not let this device's key in; there: pac keys allow FILE"
                )
            elif event & (FAILED | zmq.EVENT_DISCONNECTED) and not line.came:
                self._key_failed(line)
                return found
        found += self._read(line)
        if line.came and line.socket is not None and zmq.EVENT_DISCONNECTED in events:
            found.append(Left(line.address, "its process ended, or the connection broke"))
            line.hang_up(_AGAIN)
        return found

    def _key_failed(self, line: _Line) -> None:
        line.failures += 1
        keys = len(self._others())
        if line.failures >= _ROUNDS * keys:
            raise Refused(
                f"what listens at {line.address} has no key on the allow-list of cluster '{self._options.cluster}' in "
                f"{self._options.keys}, or speaks no CURVE; put the leader's device.pub there with 'pac keys allow'"
            )
        line.hang_up(0.0 if line.failures % keys else _AGAIN)

    def _read(self, line: _Line) -> list[Event]:
        assert line.socket is not None
        found: list[Event] = []
        for frames in read_all(line.socket, BATCH):
            data = frames[0].buffer
            if len(frames) == 1 and data == LATER:
                line.complain("the leader at {} has a worker with this device's key already; waiting until it is gone")
                left = Left(line.address, "it asked to come again later")
                line.hang_up(_LATER)
                return [*found, left]
            if len(frames) == 1 and not data:
                continue
            try:
                if len(frames) != 1:
                    raise ValueError("a message has several frames")
                found.append(Said(line.address, unpack_message(data)))
            except ValueError:
                line.hang_up(_LATER)
                return [*found, Left(line.address, GARBLED)]
        return found

    def send(self, who: str, message: Mapping[str, Any]) -> bool:
        line = self._lines.get(who)
        if line is None or line.socket is None or not line.came:
            return False
        try:
            line.socket.send(pack_message(message), zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def key_of(self, who: str) -> str:
        return self._lines[who].key

    def close(self, seconds: float) -> None:
        if self._closed:
            return
        self._closed = True
        if self._browser is not None:
            self._browser.close()
        for line in self._lines.values():
            line.hang_up(0.0, linger=seconds if line.came else 0.0)
        self._context.term()


class _Line:
    """The connection to one leader.

    Attributes:
        key: with which it is dialled.
        fitting: with which it answered last.
        came: whether it has answered.
        failures: handshakes in a row that came to nothing.
        dial_at: when to dial, while there is no socket.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.key = self.fitting = ""
        self.came = False
        self.failures = 0
        self.dial_at = 0.0
        self.socket: Socket | None = None
        self.monitor: Socket | None = None
        self._complained = False

    def open(self, context: zmq.Context[Socket], curve: Curve, key: str, silence: float) -> None:
        self.key, self.came = key, False
        self.socket = open_socket(context, zmq.DEALER, silence)
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = 100, _SLOWEST_MS
        self.monitor = self.socket.get_monitor_socket(EVENTS)
        curve.call(self.socket, key)
        self.socket.connect(self.address)

    def register(self, poller: zmq.Poller) -> None:
        for socket in (self.socket, self.monitor):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)

    def hang_up(self, pause: float, linger: float = 0.0) -> None:
        if self.socket is not None and self.monitor is not None:
            self.socket.disable_monitor()
            self.socket.close(linger=math.ceil(linger * 1000))
            self.monitor.close(linger=0)
        self.socket = self.monitor = None
        self.came, self.dial_at = False, time.monotonic() + pause

    def complain(self, text: str) -> None:
        if not self._complained:
            log.warning(text.format(self.address))
        self._complained = True


def _browse(options: MeetingOptions) -> Any:
    from pac_plugins.transports.mdns import Browser

    return Browser(options.cluster, options.interface)
