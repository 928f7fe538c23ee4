"""Pieces over a stream socket: how many frames, the size of each, the frames."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence

from pac_core.wire import HEAD_BYTES, PIECE_BYTES, PIECE_FRAMES, Buffer, WireError

_PIECES_AT_ONCE = 8
_MOST_READ = 1 << 18  # bytes asked for at once, so that memory is taken for what is there


class Unsent:
    """Parts of a piece that the system has not taken yet."""

    def __init__(self, parts: list[memoryview]) -> None:
        self.parts = parts

    @property
    def done(self) -> bool:
        """Whether the system has taken all."""
        return not self.parts


class Stream:
    """One connected stream socket.

    Attributes:
        socket: non-blocking.
        unsent: the piece that is being sent.
        broken: why nothing more will come; empty while all is well.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.setblocking(False)
        self.unsent = Unsent([])
        self.broken = ""
        self._sizes: list[int] | None = None
        self._count = 0
        self._unit = bytearray()
        self._wanted = 4
        self._refused = False

    def send(self, frames: Sequence[Buffer]) -> Unsent | None:
        """Begin to send a piece; None if the one before is still being sent."""
        if not self.flush():
            return None
        views = [memoryview(frame).cast("B") for frame in frames]
        head = struct.pack(f"<I{len(views)}I", len(views), *(view.nbytes for view in views))
        self.unsent = Unsent([memoryview(head), *(view for view in views if view.nbytes)])
        self.flush()
        return self.unsent

    def flush(self) -> bool:
        """Send what the system takes; whether that was all."""
        parts = self.unsent.parts
        while parts and not self.broken:
            try:
                sent = self.socket.sendmsg(parts)
            except BlockingIOError:
                break
            except OSError:
                self._refused = True
                break  # reading tells why, once what the peer still sent has been read
            while parts and sent >= parts[0].nbytes:
                sent -= parts.pop(0).nbytes
            if parts:
                parts[0] = parts[0][sent:]
        return not parts

    def finish(self, deadline: float) -> None:
        """Send what is begun, until ``deadline`` (of `time.monotonic`) or until the peer takes no more."""
        while not self.flush() and not self.broken and not self._refused and time.monotonic() < deadline:
            time.sleep(0.002)

    def pieces(self) -> Iterator[list[Buffer]]:
        """Pieces that have arrived; a few at most, so that other peers get their turn.

        Raises:
            WireError: what arrives is none.
        """
        for _ in range(_PIECES_AT_ONCE):
            piece = self._piece()
            if piece is None:
                return
            yield piece

    def wait(self, deadline: float) -> list[Buffer] | None:
        """The next piece; None if it does not come before ``deadline`` (of `time.monotonic`), or never will.

        Raises:
            WireError: what arrives is none.
        """
        while (piece := self._piece()) is None and not self.broken and time.monotonic() < deadline:
            time.sleep(0.002)
        return piece

    def _piece(self) -> list[Buffer] | None:
        while self._fill():
            unit, self._unit = self._unit, bytearray()
            if not self._count:
                (self._count,) = struct.unpack("<I", unit)
                if not 0 < self._count <= PIECE_FRAMES:
                    raise WireError(f"a piece of {self._count} frames")
                self._wanted = 4 * self._count
            elif self._sizes is None:
                self._sizes = list(struct.unpack(f"<{self._count}I", unit))
                if self._sizes[0] > HEAD_BYTES or sum(self._sizes[1:]) > PIECE_BYTES:
                    raise WireError("a piece is too large")
                self._wanted = sum(self._sizes)
            else:
                sizes, self._sizes, self._count, self._wanted = self._sizes, None, 0, 4
                return _split(unit, sizes)
        return None

    def _fill(self) -> bool:
        """Read on; whether the unit that is being read is whole."""
        while len(self._unit) < self._wanted:
            try:
                data = self.socket.recv(min(self._wanted - len(self._unit), _MOST_READ))
            except BlockingIOError:
                return False
            except OSError as error:
                self.broken = self.broken or _reason(error)
                return False
            if not data:
                self.broken = self.broken or "its process ended, or it broke the connection"
                return False
            self._unit += data
        return True


def _split(unit: bytearray, sizes: list[int]) -> list[Buffer]:
    view, at, frames = memoryview(unit), 0, list[Buffer]()
    for size in sizes:
        frames.append(view[at : at + size])
        at += size
    return frames


def _reason(error: OSError) -> str:
    return f"the connection broke: {error.strerror or error}"
