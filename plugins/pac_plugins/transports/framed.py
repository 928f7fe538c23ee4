"""A transport over a `Link`: one thread that moves pieces, beside the threads that compute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import Transport, TransportOptions
from pac_core.errors import BadInput, PeerLost, TransportError, TransportTimeout
from pac_core.wire import Buffer, Kind, WireError, check_tag, pack_message
from pac_plugins.transports.exchange import Exchange, Send
from pac_plugins.transports.link import Handed, Link

log = logging.getLogger("pac")

_PIECES_AT_ONCE = 8  # to one peer, before others and what has arrived get their turn
_POLL_SENT = 0.001  # seconds between looks at whether the network is done with tensors
_PAUSE = 1.0  # seconds longer than asked for after which a wait means that the machine or this process was stopped


class FramedTransport(Transport):
    """Sends and receives of `Message` over any network that moves frames.

    Args:
        link: connected to all peers; it is closed with the transport.
        rank: this device's number.
        size: number of devices.
        options: time-outs and limits.
    """

    def __init__(self, link: Link, rank: int, size: int, options: TransportOptions) -> None:
        self.timeout = options.timeout
        self._rank, self._size, self._options = rank, size, options
        self._link = link
        self._changed = threading.Condition(threading.RLock())
        self._peers = {peer: Exchange(options.max_message_bytes) for peer in range(size) if peer != rank}
        self._lost: dict[int, str] = {}
        self._unsent: list[tuple[Exchange, Send, Handed]] = []
        self._heard = dict.fromkeys(self._peers, time.monotonic())
        self._beaten = time.monotonic()
        self._closed = ""
        self._stop_by: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"pac-transport-{rank}", daemon=True)
        self._thread.start()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def lost(self) -> Mapping[int, str]:
        with self._changed:
            return dict(self._lost)

    def isend(self, to: int, message: Message, *, timeout: float | None = None) -> Work[None]:
        packed = pack_message(message, self._options.max_message_bytes)
        seconds = self.timeout if timeout is None else timeout
        work: Work[None] = Work(f"send {message.tag} to device {to}", self.timeout)
        with self._changed:
            exchange = self._exchange(to)
            if not self._changed.wait_for(lambda: self._stopped(exchange) or self._fits(packed.nbytes), seconds):
                raise TransportTimeout(
                    f"{work.what} found no room in {seconds:g} seconds: {self._pending():,} bytes wait to be sent, and "
                    f"send_ahead_bytes is {self._options.send_ahead_bytes:,}"
                )
            self._exchange(to).send(packed, work)
        self._link.wake()
        return work

    def irecv(self, source: int, tag: Tag) -> Work[Message]:
        check_tag(tag)
        work: Work[Message] = Work(f"receive {tag} from device {source}", self.timeout)
        with self._changed:
            self._exchange(source).receive(tag, work)
        self._link.wake()
        return work

    def close(self) -> None:
        with self._changed:
            if self._stop_by is None:
                self._stop_by = time.monotonic() + self.timeout
                self._end("the transport was closed")
                for peer, exchange in self._peers.items():
                    if peer not in self._lost:
                        exchange.control(Kind.BYE)
        self._link.wake()
        self._thread.join()

    def _exchange(self, peer: int) -> Exchange:
        """The peer's, if it can be talked to; under the lock, like all below."""
        if self._closed:
            raise TransportError(self._closed)
        if peer not in self._peers:
            raise BadInput(f"device {self._rank} of {self._size} cannot talk to device {peer}")
        if peer in self._lost:
            raise PeerLost(peer, self._lost[peer])
        return self._peers[peer]

    def _pending(self) -> int:
        return sum(exchange.pending_bytes for exchange in self._peers.values())

    def _fits(self, nbytes: int) -> bool:
        pending = self._pending()
        return pending == 0 or pending + nbytes <= self._options.send_ahead_bytes

    def _stopped(self, exchange: Exchange) -> bool:
        return bool(self._closed) or exchange.gone

    # the transport's own thread

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn()
        except Exception as error:  # whatever it is, nobody may be left waiting
            log.exception("transport of device %d failed", self._rank)
            self._end(f"the transport failed: {type(error).__name__}: {error}")
        left = 0.0 if self._stop_by is None else max(0.0, self._stop_by - time.monotonic())
        self._link.close(left)

    def _end(self, reason: str) -> None:
        """Refuse everything from now on, and fail what is under way."""
        with self._changed:
            self._closed = self._closed or reason
            for exchange in self._peers.values():
                self._fail(exchange, TransportError(reason))
            self._changed.notify_all()

    def _finished(self) -> bool:
        """Whether the transport is closed, and every peer that is left has been told."""
        with self._changed:
            if self._stop_by is None:
                return False
            left = [exchange for peer, exchange in self._peers.items() if peer not in self._lost]
            return all(exchange.peek() is None for exchange in left) or time.monotonic() >= self._stop_by

    def _turn(self) -> None:
        with self._changed:
            blocked = self._push()
            self._settle()
            wait = self._wait(blocked)
        asked = time.monotonic()
        pieces = self._link.receive(wait, blocked)
        now = time.monotonic()
        if now - asked > wait + _PAUSE:  # this process was stopped: the silence of others says nothing
            self._heard = {peer: heard + (now - asked) for peer, heard in self._heard.items()}
        with self._changed:
            for peer, frames in pieces:
                self._take(peer, frames, now)
            for peer, reason in self._link.lost().items():
                self._lose(peer, reason)
            self._watch(now)

    def _push(self) -> set[int]:
        """Hand pieces to the network; returns the peers that take none at the moment."""
        blocked: set[int] = set()
        for peer, exchange in self._peers.items():
            for _ in range(_PIECES_AT_ONCE):
                piece = exchange.peek()
                if piece is None:
                    break
                handed = self._link.send(peer, piece.frames)
                if handed is None:
                    blocked.add(peer)
                    break
                exchange.sent(piece)
                if piece.last is not None:
                    self._unsent.append((exchange, piece.last, handed))
        return blocked

    def _settle(self) -> None:
        """End the sends whose tensors the network is done with."""
        if not self._unsent:
            return
        over = [entry for entry in self._unsent if entry[2].done]
        self._unsent = [entry for entry in self._unsent if not entry[2].done]
        for exchange, send, _ in over:
            exchange.finish(send)
        self._changed.notify_all()

    def _wait(self, blocked: set[int]) -> float:
        """Seconds that may pass until this thread has something to do, if nothing arrives."""
        if any(exchange.peek() is not None for peer, exchange in self._peers.items() if peer not in blocked):
            return 0.0
        closing = self._stop_by is not None  # the last piece may be on its way already, and nothing comes any more
        return _POLL_SENT if self._unsent or closing else self._options.silence / 4

    def _take(self, peer: int, frames: list[Buffer], now: float) -> None:
        exchange = self._peers[peer]
        self._heard[peer] = now
        if exchange.gone and peer in self._lost:
            return
        try:
            if (kind := exchange.handle(frames)) is Kind.BYE:
                self._lose(peer, "it closed its transport")
            elif kind in (Kind.HELLO, Kind.WELCOME, Kind.REFUSE):
                raise WireError(f"a {kind.name} comes after the first piece")
        except WireError as error:
            log.warning("device %d does not keep to the protocol, and is cut off: %s", peer, error)
            self._lose(peer, f"it does not keep to the protocol: {error}")

    def _watch(self, now: float) -> None:
        """Give a sign of life now and then, and miss those of peers."""
        silence = self._options.silence
        if now - self._beaten >= silence / 4:
            self._beaten = now
            for exchange in self._peers.values():
                exchange.beat()
        for peer, heard in self._heard.items():
            if now - heard > silence:
                self._lose(peer, f"nothing was heard of it for {silence:g} seconds")

    def _lose(self, peer: int, reason: str) -> None:
        if peer in self._lost:
            return
        self._lost[peer] = reason
        self._fail(self._peers[peer], PeerLost(peer, reason))
        self._changed.notify_all()

    def _fail(self, exchange: Exchange, error: TransportError) -> None:
        for owner, send, _ in self._unsent:
            if owner is exchange and not send.work.done():
                send.work.fail(error)
        self._unsent = [entry for entry in self._unsent if entry[0] is not exchange]
        exchange.lose(error)
