"""Moves pieces between exchanges and the network. For one thread."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import CLOSED, TransportOptions
from pac_core.errors import PeerLost, TransportError
from pac_core.wire import Buffer, Kind, Packed, WireError
from pac_plugins.transports.exchange import Exchange, Send
from pac_plugins.transports.link import Handed, Link

log = logging.getLogger("pac")

_PIECES_AT_ONCE = 8  # to one peer, before others and what has arrived get their turn
_POLL_SENT = 0.001  # seconds between looks at whether the network is done with tensors
_GRACE = 0.5  # seconds in which the network may still say that it is done with what a lost peer was sent
_PAUSE = 1.0  # seconds longer than asked for after which a wait means that the machine or this process was stopped


@dataclass
class _Unsent:
    """A send whose last piece was handed to the network, which may still be reading its tensors.

    Attributes:
        fails_at: when to give it up, once its peer is gone; a peer may have taken all of it and left at once.
    """

    exchange: Exchange
    send: Send
    handed: Handed
    fails_at: float = math.inf


class Mover:
    """The exchanges with all peers, and the network between.

    Args:
        link: connected to all peers.
        peers: their ranks.
        options: silence and limits.
        free: told the bytes of each send that ended.
        note_loss: told of each peer that is lost, and why.
    """

    def __init__(
        self,
        link: Link,
        peers: Sequence[int],
        options: TransportOptions,
        free: Callable[[int], None],
        note_loss: Callable[[int, str], None],
    ) -> None:
        self._link, self._options = link, options
        self._free, self._note_loss = free, note_loss
        self._exchanges = {peer: Exchange(options.max_message_bytes) for peer in peers}
        self._lost: set[int] = set()
        self._unsent: list[_Unsent] = []
        self._heard = dict.fromkeys(peers, time.monotonic())
        self._beaten = self._turned = time.monotonic()
        self._part_by: float | None = None

    # what is asked for

    def send(self, to: int, packed: Packed, work: Work[None]) -> None:
        """Queue a message; its work fails if the peer is gone."""
        if not self._exchanges[to].send(packed, work):
            self._free(packed.nbytes)

    def receive(self, source: int, tag: Tag, work: Work[Message]) -> None:
        """Post a receive; its work fails if the peer is gone."""
        self._exchanges[source].receive(tag, work)

    def part(self, deadline: float) -> None:
        """Fail all that is under way, and take leave of the peers. `ended` once they are told, or at the deadline."""
        self._part_by = deadline
        for peer, exchange in self._exchanges.items():
            if peer not in self._lost:
                self._fail(exchange, TransportError("the transport was closed"))
                exchange.control(Kind.BYE)

    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        if self._part_by is None:
            return False
        left = [exchange for peer, exchange in self._exchanges.items() if peer not in self._lost]
        idle = not self._unsent and all(exchange.peek() is None for exchange in left)
        return idle or time.monotonic() >= self._part_by

    def close(self) -> None:
        """Close the link, with the time that is left of `part`."""
        self._link.close(max(0.0, (self._part_by or 0.0) - time.monotonic()))
        for entry in self._unsent:
            entry.send.work.fail(entry.exchange.gone or TransportError("the transport was closed"))

    # moving

    def turn(self) -> None:
        """Send what can be sent, wait for something to happen, and take what has arrived."""
        blocked = self._push()
        self._settle()
        wait = self._wait(blocked)
        pieces = self._link.receive(wait, blocked)
        now = time.monotonic()
        passed, self._turned = now - self._turned, now
        if passed > wait + _PAUSE:  # this process was stopped: the silence of others says nothing
            self._heard = {peer: heard + passed for peer, heard in self._heard.items()}
        for peer, frames in pieces:
            self._take(peer, frames, now)
        for peer, reason in self._link.lost().items():
            self._lose(peer, reason)
        self._watch(now)

    def _push(self) -> set[int]:
        """Hand pieces to the network; returns the peers that take none at the moment."""
        blocked: set[int] = set()
        for peer, exchange in self._exchanges.items():
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
                    self._unsent.append(_Unsent(exchange, piece.last, handed))
        return blocked

    def _settle(self) -> None:
        """End the sends whose tensors the network is done with."""
        now, unsent, freed = time.monotonic(), self._unsent, 0
        self._unsent = []
        for entry in unsent:
            if entry.handed.done:
                entry.send.work.finish(None)
            elif now >= entry.fails_at and entry.exchange.gone is not None:
                entry.send.work.fail(entry.exchange.gone)
            else:
                self._unsent.append(entry)
                continue
            freed += entry.send.packed.nbytes
        if freed:
            self._free(freed)

    def _wait(self, blocked: set[int]) -> float:
        """Seconds that may pass until this thread has something to do, if nothing arrives."""
        if any(exchange.peek() is not None for peer, exchange in self._exchanges.items() if peer not in blocked):
            return 0.0
        return _POLL_SENT if self._unsent or self._part_by is not None else self._options.silence / 4

    def _take(self, peer: int, frames: list[Buffer], now: float) -> None:
        exchange = self._exchanges[peer]
        self._heard[peer] = now
        if exchange.gone is not None:
            return
        try:
            kind = exchange.handle(frames)
            if kind is Kind.BYE:
                self._lose(peer, CLOSED)
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
            for exchange in self._exchanges.values():
                exchange.beat()
        for peer, heard in self._heard.items():
            if now - heard > silence:
                self._lose(peer, f"nothing was heard of it for {silence:g} seconds")

    def _lose(self, peer: int, reason: str) -> None:
        if peer not in self._lost:
            self._lost.add(peer)
            self._link.forget(peer)
            self._note_loss(peer, reason)
            self._fail(self._exchanges[peer], PeerLost(peer, reason))

    def _fail(self, exchange: Exchange, error: TransportError) -> None:
        for entry in self._unsent:
            if entry.exchange is exchange:
                entry.fails_at = time.monotonic() + _GRACE
        self._free(exchange.lose(error))
