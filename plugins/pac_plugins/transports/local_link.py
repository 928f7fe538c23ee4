"""Unix sockets between the devices of one machine."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pac_core.contracts.transport import TransportOptions
from pac_core.errors import BadInput, Refused, TransportTimeout
from pac_core.wire import Buffer, Kind, WireError, pack_head
from pac_plugins.transports.board import new_memory
from pac_plugins.transports.greeting import Identity, check_answer, refusal
from pac_plugins.transports.link import Handed, Link
from pac_plugins.transports.stream import Stream
from pac_plugins.transports.waker import Waker

_RETRY = 0.02  # seconds between attempts to reach a device that has not started


class LocalLink(Link):
    """A stream socket to each peer; devices connect to those of lower rank, and get from each its end of a bell, and
    from device 0 the memory of the board.

    Attributes:
        memory, bells: for a `Board`, which closes them.
    """

    def __init__(self, identity: Identity, options: TransportOptions) -> None:
        self._streams: dict[int, Stream] = {}
        self.bells: dict[int, socket.socket] = {}
        self.memory = -1
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        deadline = time.monotonic() + options.timeout
        try:
            self._join(identity, [peer.address for peer in options.peers], deadline)
        except BaseException:
            self._drop_board()
            self.close(0)
            raise
        for rank, stream in self._streams.items():
            self._selector.register(stream.socket, selectors.EVENT_READ, rank)
        self._selector.register(self._waker, selectors.EVENT_READ, None)

    # connecting

    def _join(self, identity: Identity, addresses: Sequence[str], deadline: float) -> None:
        path = Path(addresses[identity.rank])
        listener = _listen(path, identity.size)
        try:
            for rank in range(identity.rank):
                self._streams[rank] = self._call(identity, rank, addresses[rank], deadline)
                self._take_over(rank, deadline)
            while len(self._streams) < identity.size - 1:
                self._answer(identity, listener, deadline)
            if identity.rank == 0:
                self.memory = new_memory(identity.size)
            for rank in range(identity.rank + 1, identity.size):
                self._streams[rank].send([pack_head(Kind.WELCOME)])
                self._hand_over(rank, with_memory=identity.rank == 0)
        finally:
            listener.close()
            path.unlink(missing_ok=True)

    def _call(self, identity: Identity, rank: int, address: str, deadline: float) -> Stream:
        late = f"device {rank} at {address} did not answer in time"
        stream = Stream(_connect(address, deadline, late))
        try:
            stream.send([identity.hello()])
            answer = stream.wait(deadline)
            if answer is None:
                raise TransportTimeout(f"{late}{'; ' if stream.broken else ''}{stream.broken}")
            check_answer(rank, answer)
        except BaseException as error:
            stream.socket.close()
            if isinstance(error, WireError):
                raise Refused(f"what listens at {address} is no device of this job: {error}") from error
            raise
        return stream

    def _answer(self, identity: Identity, listener: socket.socket, deadline: float) -> None:
        listener.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            stream = Stream(listener.accept()[0])
        except TimeoutError:
            missing = sorted(set(range(identity.size)) - set(self._streams) - {identity.rank})
            raise TransportTimeout(f"devices {missing} did not connect in time") from None
        try:
            hello = stream.wait(deadline)
            rank, reason = identity.judge(hello or [])
        except WireError:
            stream.socket.close()
            return
        if reason or rank in self._streams:
            reason = reason or f"there are two devices {rank}"
            stream.send([refusal(reason)])
            stream.socket.close()
            raise Refused(f"device {rank} cannot take part: {reason}")
        self._streams[rank] = stream

    def _hand_over(self, rank: int, with_memory: bool) -> None:
        """Give a peer that was welcomed its end of a bell, and of the memory."""
        self.bells[rank], theirs = socket.socketpair()
        with theirs:
            descriptors = [theirs.fileno(), self.memory] if with_memory else [theirs.fileno()]
            with contextlib.suppress(OSError):  # it is gone, which will be noticed
                socket.send_fds(self._streams[rank].socket, [b"."], descriptors)

    def _take_over(self, rank: int, deadline: float) -> None:
        """The other side of it; nothing has been read behind the welcome.

        Raises:
            TransportTimeout: it did not come.
        """
        descriptors: list[int] = []
        while not descriptors:
            try:
                _, descriptors, _, _ = socket.recv_fds(self._streams[rank].socket, 1, 2)
            except BlockingIOError:
                time.sleep(_RETRY / 10)
                if time.monotonic() < deadline:
                    continue
            if not descriptors:
                raise TransportTimeout(f"device {rank} broke off while it connected")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self.bells[rank] = socket.socket(fileno=descriptors[0])
        if rank == 0:
            (self.memory,) = descriptors[1:]

    def _drop_board(self) -> None:
        for bell in self.bells.values():
            bell.close()
        if self.memory >= 0:
            os.close(self.memory)

    # connected

    def send(self, peer: int, frames: Sequence[Buffer]) -> Handed | None:
        return self._streams[peer].send(frames)

    def receive(self, seconds: float, blocked: Collection[int]) -> list[tuple[int, list[Buffer]]]:
        for peer, stream in self._streams.items():
            self._watch(peer, stream)
        found: list[tuple[int, list[Buffer]]] = []
        for key, events in self._selector.select(seconds):
            if key.data is None:
                self._waker.clear()
                continue
            stream = self._streams[key.data]
            if events & selectors.EVENT_WRITE:
                stream.flush()
            if events & selectors.EVENT_READ:
                try:
                    found += [(key.data, piece) for piece in stream.pieces()]
                except WireError as error:
                    stream.broken = f"it does not keep to the protocol: {error}"
        return found

    def _watch(self, peer: int, stream: Stream) -> None:
        """Wait for what the stream needs, and for nothing once it is broken."""
        registered = stream.socket.fileno() in self._selector.get_map()
        if stream.broken:
            if registered:
                self._selector.unregister(stream.socket)
        elif registered:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(stream.socket, selectors.EVENT_READ if stream.unsent.done else both, peer)

    def lost(self) -> Mapping[int, str]:
        return {peer: stream.broken for peer, stream in self._streams.items() if stream.broken}

    def forget(self, peer: int) -> None:
        self._streams[peer].broken = self._streams[peer].broken or "it is lost"

    def wake(self) -> None:
        self._waker.wake()

    def close(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for stream in self._streams.values():
            stream.finish(deadline)
            stream.socket.close()
        self._selector.close()
        self._waker.close()


def _listen(path: Path, size: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _alive(path):
                raise
            path.unlink()  # left by a device that was killed
            listener.bind(str(path))
        os.chmod(path, 0o600)  # before anyone can connect
        listener.listen(size)
    except OSError as error:
        listener.close()
        raise BadInput(f"cannot listen at {path}: {error.strerror or error}; give another address") from error
    return listener


def _alive(path: Path) -> bool:
    """Whether somebody listens at a socket file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def _connect(address: str, deadline: float, late: str) -> socket.socket:
    while True:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.connect(address)
            return connected
        except OSError as error:
            connected.close()
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
                raise BadInput(f"cannot connect to {address}: {error.strerror or error}") from error
        if time.monotonic() > deadline:
            raise TransportTimeout(late)
        time.sleep(_RETRY)
