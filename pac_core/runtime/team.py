"""The devices that train one model together, each a whole replica: how work is shared out, and what is added up."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pac_core.cache import BoundCache
from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import Transport
from pac_core.errors import PeerLost
from pac_core.model import PacModel
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.optimizer import SPARE, gradient_vector
from pac_core.runtime.overlap import Overlap

PATIENCE = 86400.0
"""Seconds to wait for a device that is alive: it may have much more to do. A dead one is noticed at once."""

POLL_SECONDS = 0.02


class Team:
    """A device and those beside it. This class is the device that is alone: all is its own, and nothing is waited for.

    Attributes:
        rank: number of this device; 0 leads: it alone writes files and tells of progress.
        size: number of devices.
        bytes_sent: tensors that all devices together have sent to each other.
        waited: seconds that this device has spent waiting for others.
    """

    rank = 0
    size = 1
    bytes_sent = 0
    waited = 0.0

    @property
    def leads(self) -> bool:
        """Whether this is the device that writes files and tells of progress."""
        return self.rank == 0

    def share(self, weights: Sequence[int]) -> list[int]:
        """Indices of this device's part of things that weigh so much each, in order."""
        return list(range(len(weights)))

    def agree(self, chosen: Sequence[int], total: int) -> Sequence[int]:
        """The numbers below ``total`` that the leader has chosen, ascending; errors as in `reduce`."""
        return chosen

    def filled(self, cache: BoundCache, stop: StopFlag) -> None:
        """Return once all devices have filled their part, and this one sees it.

        Raises:
            PeerLost: a device is gone.
            KeyboardInterrupt: a stop was requested meanwhile.
        """

    def begin(self, model: PacModel) -> None:
        """This device does one backward pass of ``model``, or none, before it calls `reduce`: gradients that are ready
        may be summed meanwhile."""

    def reduce(self, optimizer: torch.optim.Optimizer, loss: float, stop: bool) -> float:
        """Sum the optimiser's gradients over all devices; returns the sum of their losses.

        Args:
            stop: whether this device was asked to stop; see `stops`.

        Raises:
            PeerLost: a device is gone; the gradients are not to be used.
        """
        return loss

    def align(self, model: PacModel) -> None:
        """Give every device the leader's weights and scales; errors as in `reduce`."""

    def stops(self, stop: StopFlag) -> bool:
        """Whether to stop after this step: all devices say the same."""
        return stop.requested

    def total(self, values: Sequence[float]) -> list[float]:
        """Each of ``values`` summed over all devices; errors as in `reduce`."""
        return list(values)

    def reports(self, values: Sequence[float]) -> list[list[float]]:
        """The ``values`` of every device, by rank, at the leader; nothing elsewhere. Errors as in `reduce`."""
        return [list(values)]

    def meet(self, stop: StopFlag) -> None:
        """Return once every device has called it; errors as in `filled`."""

    def check(self) -> None:
        """Raise `PeerLost` if a device is known to be gone; cheap."""


ALONE = Team()


class Replicas(Team):
    """Devices that are connected, each with the whole model and all of the data, and one cache on disk for all.

    Every device calls the same methods in the same order.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.rank = transport.rank
        self.size = transport.size
        self._others = [rank for rank in range(self.size) if rank != self.rank]
        self._stops = False
        self._meetings = 0
        self._overlap: Overlap | None = None

    def share(self, weights: Sequence[int]) -> list[int]:
        return shares(weights, self.size)[self.rank]

    def agree(self, chosen: Sequence[int], total: int) -> Sequence[int]:
        marks = torch.zeros(total, dtype=torch.uint8)
        marks[list(chosen)] = 1
        self.transport.broadcast(marks, 0, timeout=PATIENCE)
        return [int(i) for i in marks.nonzero()[:, 0]]

    def filled(self, cache: BoundCache, stop: StopFlag) -> None:
        self.meet(stop)
        cache.refresh()

    def begin(self, model: PacModel) -> None:
        if not self.transport.waits:
            return
        if self._overlap is None:
            trained = [p for p in model.parameters() if p.requires_grad]
            broadcast = partial(self.transport.broadcast, root=0, timeout=PATIENCE)
            self._overlap = Overlap(trained, self._add_up, broadcast)
        self._overlap.begin()

    def reduce(self, optimizer: torch.optim.Optimizer, loss: float, stop: bool) -> float:
        began = time.perf_counter()
        united = gradient_vector(optimizer)
        beside = united[-SPARE:]
        beside.copy_(torch.tensor([loss, float(stop)], dtype=united.dtype))
        summed = self._overlap is not None and self._overlap.finish()
        self._add_up(beside if summed else united)
        self.waited += time.perf_counter() - began
        self._stops = bool(beside[1] > 0)
        return float(beside[0])

    def align(self, model: PacModel) -> None:
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()
            self.transport.broadcast(whole, 0, timeout=PATIENCE)
            tensor.copy_(whole)

    def stops(self, stop: StopFlag) -> bool:
        return self._stops

    def total(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        self._sum(summed)
        return summed.tolist()

    def reports(self, values: Sequence[float]) -> list[list[float]]:
        found = self.transport.gather(torch.tensor(values, dtype=torch.float64), 0, timeout=PATIENCE)
        return [device.tolist() for device in found or ()]

    def meet(self, stop: StopFlag) -> None:
        began = time.perf_counter()
        tag = Tag("meet", 0, self._meetings)
        self._meetings += 1
        coming = [self.transport.irecv(rank, tag) for rank in self._others]
        going = [self.transport.isend(rank, Message(tag)) for rank in self._others]
        for arriving in coming:
            _wait(arriving, stop)
        for leaving in going:
            _wait(leaving, stop)
        self.waited += time.perf_counter() - began

    def check(self) -> None:
        for rank, reason in self.transport.lost().items():
            raise PeerLost(rank, reason)

    def _sum(self, tensor: Tensor) -> None:
        began = time.perf_counter()
        self._add_up(tensor)
        self.waited += time.perf_counter() - began

    def _add_up(self, tensor: Tensor) -> None:
        self.transport.all_reduce(tensor, timeout=PATIENCE)
        self.bytes_sent += 2 * (self.size - 1) * tensor.numel() * tensor.element_size()


def shares(weights: Sequence[int], count: int) -> list[list[int]]:
    """Indices of ``weights`` in ``count`` parts that weigh nearly the same: the heaviest first, to the lightest part.

    >>> shares([3, 1, 1, 1], 2)
    [[0], [1, 2, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, rank) for rank in range(count)]
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        load, rank = loads[0]
        parts[rank].append(i)
        heapq.heapreplace(loads, (load + weights[i], rank))
    return [sorted(part) for part in parts]


def _wait(work: Work[Message] | Work[None], stop: StopFlag) -> None:
    while not work.done():
        if stop.requested:
            raise KeyboardInterrupt
        time.sleep(POLL_SECONDS)
    work.wait()
