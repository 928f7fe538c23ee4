"""A transport over a `Link`: one thread that moves pieces, beside the threads that compute."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import Transport, TransportOptions
from pac_core.errors import BadInput, PeerLost, TransportError, TransportTimeout
from pac_core.wire import check_tag, pack_message
from pac_plugins.transports.link import Link
from pac_plugins.transports.mover import Mover

log = logging.getLogger("pac")


class FramedTransport(Transport):
    """Sends and receives of `Message` over any network that moves frames.

    What callers ask for goes to the transport's thread in a queue, so that they never wait for one that moves data.

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
        self._gate = threading.Condition()  # guards the four below, and is never held for long
        self._pending = 0
        self._lost: dict[int, str] = {}
        self._closed = ""
        self._asked: deque[Callable[[], None]] = deque()
        peers = [peer for peer in range(size) if peer != rank]
        self._mover = Mover(link, peers, options, self._free, self._note_loss)
        self._thread = threading.Thread(target=self._run, name=f"pac-transport-{rank}", daemon=True)
        self._thread.start()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def lost(self) -> Mapping[int, str]:
        with self._gate:
            return dict(self._lost)

    def isend(self, to: int, message: Message, *, timeout: float | None = None) -> Work[None]:
        packed = pack_message(message, self._options.max_message_bytes)
        seconds = self.timeout if timeout is None else timeout
        work: Work[None] = Work(f"send {message.tag} to device {to}", self.timeout)
        with self._gate:
            self._check(to)
            if not self._gate.wait_for(lambda: self._ended(to) or self._fits(packed.nbytes), seconds):
                raise TransportTimeout(
                    f"{work.what} found no room in {seconds:g} seconds: {self._pending:,} bytes wait to be sent, and "
                    f"send_ahead_bytes is {self._options.send_ahead_bytes:,}"
                )
            self._check(to)
            self._pending += packed.nbytes
            self._asked.append(lambda: self._mover.send(to, packed, work))
        self._link.wake()
        return work

    def irecv(self, source: int, tag: Tag) -> Work[Message]:
        check_tag(tag)
        work: Work[Message] = Work(f"receive {tag} from device {source}", self.timeout)
        with self._gate:
            self._check(source)
            self._asked.append(lambda: self._mover.receive(source, tag, work))
        self._link.wake()
        return work

    def close(self) -> None:
        with self._gate:
            if not self._closed:
                self._closed = "the transport is closed"
                deadline = time.monotonic() + self.timeout
                self._asked.append(lambda: self._mover.part(deadline))
                self._gate.notify_all()
                self._link.wake()
        self._thread.join()

    def _check(self, peer: int) -> None:
        """Return if the peer can be talked to; under the gate, like the next two."""
        if self._closed:
            raise TransportError(self._closed)
        if not 0 <= peer < self._size or peer == self._rank:
            raise BadInput(f"device {self._rank} of {self._size} cannot talk to device {peer}")
        if peer in self._lost:
            raise PeerLost(peer, self._lost[peer])

    def _ended(self, peer: int) -> bool:
        return bool(self._closed) or peer in self._lost

    def _fits(self, nbytes: int) -> bool:
        return self._pending == 0 or self._pending + nbytes <= self._options.send_ahead_bytes

    # the transport's own thread

    def _run(self) -> None:
        try:
            while not self._mover.ended():
                while self._asked:
                    self._asked.popleft()()
                self._mover.turn()
        except Exception as error:  # whatever it is, nobody may be left waiting
            log.exception("transport of device %d failed", self._rank)
            with self._gate:
                self._closed = f"the transport failed: {type(error).__name__}: {error}"
                self._gate.notify_all()
            self._mover.part(0.0)
        while self._asked:  # works that came too late; parting has failed all before them
            self._asked.popleft()()
        self._mover.close()

    def _free(self, nbytes: int) -> None:
        """Sends of so many bytes ended, one way or the other."""
        with self._gate:
            self._pending -= nbytes
            self._gate.notify_all()

    def _note_loss(self, peer: int, reason: str) -> None:
        with self._gate:
            self._lost[peer] = reason
            self._gate.notify_all()
