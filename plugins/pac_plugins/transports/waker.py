"""Ends another thread's wait for sockets."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A socket that can be read from once `wake` was called."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Of the socket to wait for."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make it readable; from any thread, also when it is closed."""
        with contextlib.suppress(OSError):  # full: it is readable already
            self._writer.send(b".")

    def clear(self) -> None:
        """Make it unreadable until the next `wake`."""
        with contextlib.suppress(BlockingIOError):
            while len(self._reader.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Release both sockets."""
        self._reader.close()
        self._writer.close()
