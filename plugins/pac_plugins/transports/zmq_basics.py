"""What all users of ZeroMQ here share. It imports no torch, which a worker that waits has no need of."""

from __future__ import annotations

import zmq

HANDSHAKE_MS = 10_000
FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
EVENTS = FAILED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


def read_all(socket: zmq.Socket[bytes], most: int) -> list[list[zmq.Frame]]:
    """The messages that are there, up to so many."""
    found: list[list[zmq.Frame]] = []
    try:
        while len(found) < most:
            found.append(socket.recv_multipart(zmq.NOBLOCK, copy=False))
    except zmq.Again:
        pass
    return found
