"""Ends another thread's wait for sockets."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A socket that can be read from once `wake` was called.

    What the woken thread is to find must be in place before `wake`, and be looked for after `clear`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._woken = False

    def fileno(self) -> int:
        """Of the socket to wait for."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make it readable; from any thread, also when it is closed."""
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(OSError):  # full: it is readable already
            self._writer.send(b".")

    def clear(self) -> None:
        """Make it unreadable until the next `wake`."""
        with contextlib.suppress(BlockingIOError):
            while len(self._reader.recv(4096)) == 4096:
                pass
        self._woken = False  # a wake before this line was in vain, but what it was for is looked for after it

    def close(self) -> None:
        """Release both sockets."""
        self._reader.close()
        self._writer.close()
