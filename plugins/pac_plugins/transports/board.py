"""Collectives of the devices of one machine, through memory that all of them see."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pac_core.errors import BadInput, PeerLost, TransportError, TransportTimeout

_SLOT = 4 << 20  # bytes of a piece; much more would not stay in a processor's cache until the others have read it
_SLOTS = 2  # used in turns: who is at one piece may still be read at the one before
_FEW_BYTES = 1 << 16  # up to which every device sums all of a piece itself, since meeting twice would take longer
_NOTE = 64  # bytes by which a device tells another what it has written
_SPIN = 0.0003  # seconds in which a note is looked for before this thread sleeps, which takes some 50 us to wake from
_LOOK = 0.05  # seconds of sleep between looks at whether the peer is known to be lost

Gone = Callable[[int], TransportError | None]
"""What to raise if nothing more is to be expected of a device, which is lost, or since the transport was closed."""


def new_memory(size: int) -> int:
    """A descriptor of memory for the board of ``size`` devices. It has no name, so it is gone once nobody has it open,
    whatever ends them, and nobody but those it is handed to can open it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pac-board")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size * _SLOTS * _SLOT)
    return descriptor


class Board:
    """A place in memory for each device, which it alone writes and all read, and a bell between any two of them.

    In each round a device writes its place, rings all bells with a note of what it is at, waits for the note of every
    other device, and reads. Notes go through sockets: that orders memory on every processor, the end of a process is
    seen at once, and who waits can sleep. Only for collectives of all devices.

    Args:
        rank: number of this device.
        memory: descriptor from `new_memory`; it is closed.
        bells: connected stream sockets to all other devices; they are closed with the board.
        gone: asked of a device while it is waited for.
    """

    def __init__(self, rank: int, memory: int, bells: Mapping[int, socket.socket], gone: Gone) -> None:
        self._rank, self._bells, self._gone = rank, bells, gone
        self._count = len(bells) + 1
        try:
            whole = torch.frombuffer(mmap.mmap(memory, self._count * _SLOTS * _SLOT), dtype=torch.uint8)
        finally:
            os.close(memory)
        self._places: list[list[Tensor]] = [list(place) for place in whole.view(self._count, _SLOTS, _SLOT)]
        self._used = threading.Lock()  # so that closing waits for a collective that is under way
        self._round = 0
        self._broken = ""
        for bell in bells.values():
            bell.setblocking(False)

    def all_reduce(self, flat: Tensor, deadline: float) -> None:
        """Replace ``flat`` (n) by the sum over all devices; see `Transport.all_reduce`."""
        with self._whole():
            for piece in _pieces(flat):
                views = self._write(piece)
                self._meet("all_reduce", piece, deadline)
                if self._count == 2 or piece.nbytes <= _FEW_BYTES:
                    _sum(views, piece)
                else:
                    self._sum_shares(views, piece, deadline)

    def _sum_shares(self, views: Sequence[Tensor], piece: Tensor, deadline: float) -> None:
        """As `_sum`, but every device sums one share for all."""
        shares = [view.tensor_split(self._count) for view in views]
        sums = piece.tensor_split(self._count)
        _sum([share[self._rank] for share in shares], sums[self._rank])
        shares[self._rank][self._rank].copy_(sums[self._rank])
        self._meet("all_reduce, shares", piece, deadline)
        for rank in self._bells:
            sums[rank].copy_(shares[rank][rank])

    def broadcast(self, flat: Tensor, root: int, deadline: float) -> None:
        """Replace ``flat`` (n) by that of ``root``; see `Transport.broadcast`."""
        with self._whole():
            for piece in _pieces(flat):
                views = self._write(piece, wanted=self._rank == root)
                self._meet(f"broadcast {root}", piece, deadline)
                if self._rank != root:
                    piece.copy_(views[root])

    def gather(self, flat: Tensor, root: int, deadline: float) -> list[Tensor] | None:
        """At ``root`` the vectors (n) of all devices, by rank; None elsewhere. See `Transport.gather`."""
        found = [torch.empty_like(flat) for _ in range(self._count)] if self._rank == root else None
        with self._whole():
            start = 0
            for piece in _pieces(flat):
                views = self._write(piece, wanted=True)
                self._meet(f"gather {root}", piece, deadline)
                for rank, whole in enumerate(found or ()):
                    whole[start : start + piece.numel()].copy_(views[rank])
                start += piece.numel()
        return found

    def barrier(self, deadline: float) -> None:
        """See `Transport.barrier`."""
        with self._whole():
            self._round += 1
            self._meet("barrier", torch.empty(0), deadline)

    def close(self) -> None:
        """Release memory and bells. ``gone`` must have a reason by now, so that a collective under way ends first."""
        with self._used:
            self._broken = self._broken or "the transport is closed"
            self._places = []
            for bell in self._bells.values():
                bell.close()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """A collective; one that fails leaves the devices at different rounds, so it is the last."""
        with self._used:
            if self._broken:
                raise TransportError(self._broken)
            try:
                yield
            except BaseException as error:
                self._broken = f"a collective failed before ({error}); close the transport and open another"
                raise

    def _write(self, piece: Tensor, wanted: bool = True) -> list[Tensor]:
        """Begin a round: put ``piece`` into this device's place if it is wanted. Returns views of all places, by rank,
        to be read after `_meet`."""
        self._round += 1
        slot = self._round % _SLOTS
        views = [place[slot][: piece.nbytes].view(piece.dtype) for place in self._places]
        if wanted:
            views[self._rank].copy_(piece)
        return views

    def _meet(self, what: str, piece: Tensor, deadline: float) -> None:
        """Return once every device is at this round.

        Raises:
            BadInput: one is at something else.
            PeerLost, TransportTimeout, TransportError: as in `Transport.all_reduce`.
        """
        note = f"{self._round} {what} {str(piece.dtype).removeprefix('torch.')} {piece.numel()}".ljust(_NOTE).encode()
        for rank, bell in self._bells.items():
            try:
                bell.sendall(note)
            except OSError:
                raise self._lost(rank) from None
        for rank in self._bells:
            heard = self._hear(rank, deadline)
            if heard != note:
                raise BadInput(
                    f"members of a collective called different ones, or with different tensors: device {rank} is at "
                    f"'{heard.decode(errors='replace').strip()}', this device at '{note.decode().strip()}'"
                )

    def _hear(self, rank: int, deadline: float) -> bytes:
        """The next note of a device."""
        bell, heard = self._bells[rank], b""
        sleeps = time.monotonic() + _SPIN
        while len(heard) < _NOTE:
            gone = self._gone(rank)  # before the last look, since what it rang before counts
            try:
                part = bell.recv(_NOTE - len(heard))
            except BlockingIOError:
                if gone is not None:
                    raise gone from None
                self._pause(rank, bell, sleeps, deadline)
                continue
            except OSError:
                part = b""
            if not part:
                raise self._lost(rank)
            heard += part
        return heard

    def _pause(self, rank: int, bell: socket.socket, sleeps: float, deadline: float) -> None:
        now = time.monotonic()
        if now < sleeps:
            os.sched_yield()
            return
        if now >= deadline:
            raise TransportTimeout(f"a collective did not end in time: device {rank} did not come")
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.poll(1000 * min(_LOOK, deadline - now))

    def _lost(self, rank: int) -> TransportError:
        """What to raise now that a bell is broken: what the transport knows of the reason, if it knows one soon."""
        until = time.monotonic() + 10 * _LOOK
        while (gone := self._gone(rank)) is None and time.monotonic() < until:
            time.sleep(_LOOK / 10)
        return gone or PeerLost(rank, "its process ended, or it broke the connection")


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    return torch.split(flat, _SLOT // flat.element_size())


def _sum(views: Sequence[Tensor], out: Tensor) -> None:
    """Put the sum of vectors (n) into ``out`` (n), which is none of them, added in their order, so that it has the same
    bits everywhere."""
    first, second, *others = views
    total = torch.add(first, second, out=out if out.device == first.device else None)
    for view in others:
        total.add_(view)
    if total is not out:
        out.copy_(total)
