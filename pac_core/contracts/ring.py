"""Collectives over sends and receives, for transports that have none of their own.

A collective's messages carry the group in their tag, so that those of overlapping groups do not meet.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pac_core.contracts.message import Message, Tag, Work
from pac_core.errors import BadInput

if TYPE_CHECKING:
    from pac_core.contracts.transport import Transport

_PIECE_BYTES = 4 << 20


class _Circle:
    """A group as seen by one member: who is where on the ring, and how much time is left.

    Args:
        name: of the collective, for the tags.
        timeout: seconds for the whole collective; None for the transport's.
    """

    def __init__(self, transport: Transport, name: str, group: Sequence[int] | None, timeout: float | None) -> None:
        self.ranks = members(transport.rank, transport.size, group)
        self.count = len(self.ranks)
        self.place = self.ranks.index(transport.rank)
        self._transport = transport
        self._deadline = time.monotonic() + (transport.timeout if timeout is None else timeout)
        self._name = f"@{name}:{hashlib.blake2b(repr(self.ranks).encode(), digest_size=6).hexdigest()}"

    def send(self, step: int, place: int, tensor: torch.Tensor | None = None) -> Work[None]:
        tensors = {} if tensor is None else {"": tensor}
        message = Message(Tag(self._name, 0, step), {}, tensors)
        return self._transport.isend(self.ranks[place % self.count], message, timeout=self.left())

    def receive(self, step: int, place: int) -> Work[Message]:
        return self._transport.irecv(self.ranks[place % self.count], Tag(self._name, 0, step))

    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())


def members(rank: int, size: int, group: Sequence[int] | None) -> tuple[int, ...]:
    """The ranks of a group.

    Raises:
        BadInput: they are not ascending ranks with ``rank`` among them.
    """
    ranks = tuple(range(size)) if group is None else tuple(group)
    if list(ranks) != sorted(set(ranks)) or rank not in ranks or not 0 <= ranks[0] <= ranks[-1] < size:
        raise BadInput(f"group {list(ranks)} must be ascending ranks below {size} with this device, {rank}, among them")
    return ranks


def check_tensor(tensor: torch.Tensor, *, sums: bool = False) -> None:
    """Refuse a tensor that a collective cannot change in place.

    Raises:
        BadInput: it is not contiguous, it needs gradients, or it is to be summed and of type bool.
    """
    if not tensor.is_contiguous():
        raise BadInput("a collective changes its tensor in place, so it must be contiguous")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise BadInput("a collective changes its tensor in place: give it a detached one, or call it under no_grad")
    if sums and tensor.dtype is torch.bool:
        raise BadInput("booleans cannot be summed; give integers")


def check_root(root: int, ranks: Sequence[int]) -> None:
    """Refuse a root that is none of ``ranks``.

    Raises:
        BadInput: it is not.
    """
    if root not in ranks:
        raise BadInput(f"device {root} is not in the group {list(ranks)}")


def all_reduce(transport: Transport, tensor: torch.Tensor, group: Sequence[int] | None, timeout: float | None) -> None:
    """See `Transport.all_reduce`. Two turns around the ring, of one segment per member: sums, then the sums to all."""
    check_tensor(tensor, sums=True)
    ring = _Circle(transport, "all_reduce", group, timeout)
    if ring.count == 1:
        return
    segments = _segments(tensor.view(-1), ring.count)
    steps = 2 * (ring.count - 1)
    sends, coming = [], ring.receive(0, ring.place - 1)
    for step in range(steps):
        arriving, sent = segments[(ring.place - step - 1) % ring.count], segments[(ring.place - step) % ring.count]
        sends.append(ring.send(step, ring.place + 1, sent))
        arrived = coming
        if step + 1 < steps:
            coming = ring.receive(step + 1, ring.place - 1)
        values = _checked(arrived.wait(ring.left()), arriving)
        if step < ring.count - 1:
            arriving.add_(values)
        else:
            sends[step - ring.count + 1].wait(ring.left())  # it read what is now overwritten
            arriving.copy_(values)
    for send in sends:
        send.wait(ring.left())


def broadcast(
    transport: Transport, tensor: torch.Tensor, root: int, group: Sequence[int] | None, timeout: float | None
) -> None:
    """See `Transport.broadcast`. Pieces go along the ring, so that all links work at once."""
    check_tensor(tensor)
    ring = _Circle(transport, "broadcast", group, timeout)
    first = _place(ring, root)
    pieces = torch.split(tensor.view(-1), max(1, _PIECE_BYTES // tensor.element_size()))
    begins, ends = ring.place == first, (ring.place + 1 - first) % ring.count == 0
    coming = [] if begins else [ring.receive(0, ring.place - 1)]
    sends = []
    for step, piece in enumerate(pieces):
        if not begins:
            if step + 1 < len(pieces):
                coming.append(ring.receive(0, ring.place - 1))
            piece.copy_(_checked(coming.pop(0).wait(ring.left()), piece))
        if not ends:
            sends.append(ring.send(0, ring.place + 1, piece))
    for send in sends:
        send.wait(ring.left())


def gather(
    transport: Transport, tensor: torch.Tensor, root: int, group: Sequence[int] | None, timeout: float | None
) -> list[torch.Tensor] | None:
    """See `Transport.gather`. Every member sends to the root."""
    check_tensor(tensor)
    ring = _Circle(transport, "gather", group, timeout)
    first = _place(ring, root)
    if ring.place != first:
        ring.send(0, first, tensor.view(-1)).wait(ring.left())
        return None
    coming = {place: ring.receive(0, place) for place in range(ring.count) if place != first}
    flat = tensor.view(-1)
    found = [
        _checked(coming[place].wait(ring.left()), flat) if place in coming else flat.clone()
        for place in range(ring.count)
    ]
    return [values.to(tensor.device).view(tensor.shape) for values in found]


def barrier(transport: Transport, group: Sequence[int] | None, timeout: float | None) -> None:
    """See `Transport.barrier`. After round k everyone has heard, directly or not, from the 2**k before it."""
    ring = _Circle(transport, "barrier", group, timeout)
    distance = 1
    while distance < ring.count:
        coming = ring.receive(distance, ring.place - distance)
        send = ring.send(distance, ring.place + distance)
        coming.wait(ring.left())
        send.wait(ring.left())
        distance *= 2


def _place(ring: _Circle, root: int) -> int:
    check_root(root, ring.ranks)
    return ring.ranks.index(root)


def _segments(flat: torch.Tensor, count: int) -> list[torch.Tensor]:
    """``count`` neighbouring parts of a vector (n), each n / count long or one shorter or longer."""
    bounds = [flat.numel() * i // count for i in range(count + 1)]
    return [flat[a:b] for a, b in itertools.pairwise(bounds)]


def _checked(message: Message, expected: torch.Tensor) -> torch.Tensor:
    """The tensor of a message, on the device of the one it is for."""
    values = message.tensors[""]
    if values.dtype != expected.dtype or values.shape != expected.shape:
        raise BadInput(
            f"members of a collective gave different tensors: {values.dtype} {list(values.shape)} met "
            f"{expected.dtype} {list(expected.shape)}"
        )
    return values.to(expected.device)
