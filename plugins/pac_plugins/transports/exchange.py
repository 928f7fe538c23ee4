"""Who waits for what: sends meet the receives that peers have posted. No threads and no sockets are in here."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pac_core.contracts.message import Message, Tag, Work
from pac_core.errors import PacError
from pac_core.wire import Buffer, Incoming, Kind, Packed, WireError, pack_head, read_tag, take, unpack_head

_MOST_POSTED = 1 << 16  # receives of one peer that may wait here; each takes about a hundred bytes


@dataclass
class Send:
    """A message that waits for its receive, or is being sent."""

    packed: Packed
    work: Work[None]


@dataclass
class Receive:
    """A posted receive, and what has arrived of it."""

    tag: Tag
    work: Work[Message]
    incoming: Incoming | None = None


@dataclass(frozen=True)
class Piece:
    """Frames to be sent; with ``last``, the send that they complete."""

    frames: list[Buffer]
    last: Send | None = None


@dataclass
class _Sending:
    """The message being sent, and how many bytes of it are still to be made into pieces."""

    send: Send
    pieces: Iterator[list[Buffer]]
    left: int


class Exchange:
    """What passes between this device and one peer.

    A receive is posted to the peer under a number. A message is sent once its receive is known, under that number, so
    nothing arrives that was not asked for, and what is asked for never waits behind something else.

    Args:
        max_message_bytes: of tensors; a peer that announces more breaks the protocol.

    Attributes:
        gone: why nothing passes any more; None while all is well.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self.gone: PacError | None = None
        self._max_bytes = max_message_bytes
        self._number = 0
        self._receives: dict[int, Receive] = {}
        self._waiting: dict[Tag, deque[Send]] = defaultdict(deque)
        self._asked: dict[Tag, deque[int]] = defaultdict(deque)
        self._asked_count = 0
        self._control: deque[Piece] = deque()
        self._data: deque[tuple[int, Send]] = deque()
        self._sending: _Sending | None = None
        self._next: Piece | None = None

    # this side

    def send(self, packed: Packed, work: Work[None]) -> bool:
        """Queue a message; False, and its work fails, if the peer is gone."""
        if self.gone is not None:
            work.fail(self.gone)
            return False
        send, asked = Send(packed, work), self._asked.get(packed.tag)
        if not asked:
            self._waiting[packed.tag].append(send)
            return True
        self._data.append((asked.popleft(), send))
        self._asked_count -= 1
        if not asked:
            del self._asked[packed.tag]
        return True

    def receive(self, tag: Tag, work: Work[Message]) -> None:
        """Post a receive; its work fails if the peer is gone."""
        if self.gone is not None:
            work.fail(self.gone)
            return
        self._number += 1
        self._receives[self._number] = Receive(tag, work)
        self.control(Kind.POST, self._number, tag)

    def control(self, kind: Kind, *fields: object) -> None:
        """Queue a piece without data; it goes ahead of all data."""
        self._control.append(Piece([pack_head(kind, *fields)]))

    def beat(self) -> None:
        """Queue a sign of life, unless something is queued that will do as one."""
        if not self._control and self.gone is None:
            self.control(Kind.BEAT)

    # what is to be sent

    def peek(self) -> Piece | None:
        """The next piece to be sent, if there is one; control goes ahead of data."""
        if self._control:
            return self._control[0]
        if self._next is None:
            self._next = self._make()
        return self._next

    def sent(self, piece: Piece) -> None:
        """What `peek` gave is on its way."""
        if self._control and self._control[0] is piece:
            self._control.popleft()
        else:
            self._next = None

    def _make(self) -> Piece | None:
        if self._sending is None:
            if not self._data:
                return None
            number, send = self._data.popleft()
            self._sending = _Sending(send, send.packed.pieces(number), send.packed.nbytes)
        frames = next(self._sending.pieces)
        self._sending.left -= sum(memoryview(frame).nbytes for frame in frames[1:])
        if self._sending.left:
            return Piece(frames)
        send, self._sending = self._sending.send, None
        return Piece(frames, send)

    # what arrives

    def handle(self, frames: Sequence[Buffer]) -> Kind:
        """Take a piece from the peer, and say what it was; what is no message or receive is left to the caller.

        Raises:
            WireError: the peer does not keep to the protocol.
        """
        if not frames:
            raise WireError("a piece without a head")
        kind, fields = unpack_head(frames[0])
        if kind is Kind.DATA or kind is Kind.MORE:
            self._arrive(kind, fields, frames[1:])
        elif len(frames) > 1:
            raise WireError("data comes with a head that has none")
        elif kind is Kind.POST:
            number, tag = take(fields, int, list)
            self._post(number, read_tag(tag))
        return kind

    def _post(self, number: int, tag: Tag) -> None:
        waiting = self._waiting.get(tag)
        if waiting:
            self._data.append((number, waiting.popleft()))
            if not waiting:
                del self._waiting[tag]
            return
        if self._asked_count == _MOST_POSTED:
            raise WireError(f"more than {_MOST_POSTED:,} receives are posted")
        self._asked_count += 1
        self._asked[tag].append(number)

    def _arrive(self, kind: Kind, fields: list[Any], frames: Sequence[Buffer]) -> None:
        if not fields or type(fields[0]) is not int:
            raise WireError("data without a number")
        receive = self._receives.get(fields[0])
        if receive is None or (kind is Kind.DATA) != (receive.incoming is None):
            raise WireError("data that was not asked for")
        if receive.incoming is None:
            receive.incoming = Incoming(fields[1:], self._max_bytes)
            if receive.incoming.tag != receive.tag:
                raise WireError(f"{receive.incoming.tag} comes where {receive.tag} was asked for")
        elif len(fields) > 1:
            raise WireError("a further piece has fields of its own")
        receive.incoming.add(frames)
        if receive.incoming.complete:
            del self._receives[fields[0]]
            receive.work.finish(receive.incoming.message())

    # the end

    def lose(self, error: PacError) -> int:
        """Fail everything under way with this peer, now and from now on; returns the bytes of sends that failed."""
        self.gone = error
        sends = [send for queue in self._waiting.values() for send in queue] + [send for _, send in self._data]
        if self._sending is not None:
            sends.append(self._sending.send)
        if self._next is not None and self._next.last is not None:
            sends.append(self._next.last)
        works: list[Work[Any]] = [send.work for send in sends] + [r.work for r in self._receives.values()]
        for queue in (self._waiting, self._data, self._receives, self._asked, self._control):
            queue.clear()
        self._sending = self._next = None
        for work in works:
            work.fail(error)
        return sum(send.packed.nbytes for send in sends)
