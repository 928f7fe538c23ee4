"""Pieces over torch.distributed's sends and receives of tensors, in main memory, through gloo."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from pac_core.wire import HEAD_BYTES, PIECE_BYTES, PIECE_FRAMES, Buffer, WireError
from pac_plugins.transports.link import Handed, Link

_PIECES_QUEUED = 8  # in each direction of a connection
_UNUSED_TAG = 1


class _Piece:
    """Frames handed to a sending thread."""

    def __init__(self, frames: Sequence[Buffer]) -> None:
        self.frames = frames
        self.done = False


class TorchLink(Link):
    """A thread that sends to and one that receives from each peer, since gloo's waits block.

    A piece is a table of its frames' sizes, int64 (PIECE_FRAMES + 1), and the frames, uint8.

    Args:
        rank: of this device.
        size: number of devices.
        group: of gloo, with all devices in it and without a time-out, for this link alone, which destroys it.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup) -> None:
        self._group = group
        self._arrived: queue.Queue[tuple[int, list[Buffer]] | None] = queue.Queue()
        self._peers = [peer for peer in range(size) if peer != rank]
        self._room = {peer: threading.Semaphore(_PIECES_QUEUED) for peer in self._peers}
        self._leaving: dict[int, queue.Queue[_Piece | None]] = {peer: queue.Queue() for peer in self._peers}
        self._waiting: dict[int, int] = dict.fromkeys(self._peers, 0)
        self._broken: dict[int, str] = {}
        self._lost: dict[int, str] = {}
        self._closing = False
        loops = [(kind, peer) for kind in (self._send_on, self._receive_on) for peer in self._peers]
        self._threads = [threading.Thread(target=loop, args=(peer,), daemon=True) for loop, peer in loops]
        for thread in self._threads:
            thread.start()

    # the link's side

    def send(self, peer: int, frames: Sequence[Buffer]) -> Handed | None:
        if peer in self._broken or self._leaving[peer].qsize() >= _PIECES_QUEUED:
            return None
        piece = _Piece(frames)
        self._leaving[peer].put(piece)
        return piece

    def receive(self, seconds: float, blocked: Collection[int]) -> list[tuple[int, list[Buffer]]]:
        found: list[tuple[int, list[Buffer]]] = []
        broken = dict(self._broken)
        if broken.keys() - self._lost.keys():
            seconds = 0.0
        with contextlib.suppress(queue.Empty):
            first = self._arrived.get(timeout=seconds) if seconds else self._arrived.get_nowait()
            while True:
                if first is not None:
                    found.append(first)
                    self._room[first[0]].release()
                first = self._arrived.get_nowait()
        self._lost |= broken  # what they had sent was queued before they broke, and is in ``found`` or was before
        return found

    def lost(self) -> Mapping[int, str]:
        return self._lost

    def forget(self, peer: int) -> None:
        self._broken.setdefault(peer, "it is lost")

    def wake(self) -> None:
        self._arrived.put(None)

    def close(self, seconds: float) -> None:
        self._closing = True
        for leaving in self._leaving.values():
            leaving.put(None)
        half = len(self._peers)
        for peer, thread in zip(self._peers, self._threads[:half]):
            thread.join(0 if peer in self._broken else seconds)
        self._cancel()
        for room in self._room.values():
            room.release()
        for thread in self._threads:
            thread.join(5)
        dist.destroy_process_group(self._group)
        del self._group  # or a cycle of objects keeps its sockets open

    def _cancel(self) -> None:
        """End all that waits: gloo cannot cancel, but a receive that times out closes every connection of its group."""
        for peer in self._peers:
            if any(thread.is_alive() for thread in self._threads):
                with contextlib.suppress(RuntimeError):  # at once from a peer that is gone, which closes no other's
                    nothing = torch.empty(1, dtype=torch.uint8)
                    work = dist.irecv(nothing, peer, group=self._group, tag=_UNUSED_TAG)
                    assert work is not None
                    work.wait(timedelta(milliseconds=1))

    # the threads' side

    def _send_on(self, peer: int) -> None:
        while (piece := self._leaving[peer].get()) is not None:
            try:
                self._send_piece(peer, piece)
            except RuntimeError as error:
                self._break(peer, error)
                return
            piece.done = True
            self.wake()  # whoever waits for room, or for its tensors

    def _send_piece(self, peer: int, piece: _Piece) -> None:
        tensors = [_tensor(frame) for frame in piece.frames]
        table = torch.zeros(PIECE_FRAMES + 1, dtype=torch.int64)
        table[0] = len(tensors)
        table[1 : len(tensors) + 1] = torch.tensor([tensor.numel() for tensor in tensors])
        works = [dist.isend(tensor, peer, group=self._group) for tensor in (table, *tensors)]
        for work in works:
            assert work is not None
            work.wait()

    def _receive_on(self, peer: int) -> None:
        while not self._closing:
            try:
                frames = self._receive_piece(peer)
            except (RuntimeError, WireError) as error:
                self._break(peer, error)
                return
            self._room[peer].acquire()
            self._arrived.put((peer, frames))

    def _receive_piece(self, peer: int) -> list[Buffer]:
        table = torch.empty(PIECE_FRAMES + 1, dtype=torch.int64)
        dist.recv(table, peer, group=self._group)
        count, *sizes = table.tolist()
        if not 0 < count <= PIECE_FRAMES or min(sizes) < 0:
            raise WireError("it does not keep to the protocol: a piece without frames")
        if sizes[0] > HEAD_BYTES or sum(sizes[1:]) > PIECE_BYTES:
            raise WireError("it does not keep to the protocol: a piece is too large")
        frames: list[Buffer] = []
        for size in sizes[:count]:
            frame = torch.empty(size, dtype=torch.uint8)
            dist.recv(frame, peer, group=self._group)
            frames.append(frame.numpy().data)
        return frames

    def _break(self, peer: int, error: Exception) -> None:
        reason = str(error) if isinstance(error, WireError) else "its process ended, or the connection broke"
        self._broken.setdefault(peer, reason)
        self.wake()


def _tensor(frame: Buffer) -> torch.Tensor:
    """A frame as uint8 (n): its own memory, but for heads, which torch wants to be writable."""
    return torch.frombuffer(bytearray(frame) if memoryview(frame).readonly else frame, dtype=torch.uint8)
