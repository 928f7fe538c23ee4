"""A stream of pieces over a socket."""

import socket
import time

from pac_plugins.transports.stream import Stream


def test_a_peer_that_has_gone_keeps_nobody_waiting() -> None:
    own, peer = socket.socketpair()
    stream = Stream(own)
    assert not stream.send([b"h", bytes(8 << 20)]).done  # more than the system takes at once
    peer.close()
    began = time.monotonic()
    stream.finish(began + 60)
    own.close()
    assert time.monotonic() - began < 5
    assert not stream.unsent.done
