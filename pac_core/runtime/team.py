"""The devices that train one model together, each a whole replica: how work is shared out, and what is added up."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pac_core.batches import Dataset, share_out
from pac_core.cache import BoundCache
from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import PeerLost
from pac_core.examples import Example
from pac_core.model import PacModel
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.job import PATIENCE
from pac_core.runtime.metered import Metered
from pac_core.runtime.optimizer import SPARE, gradient_vector
from pac_core.runtime.overlap import Overlap
from pac_core.runtime.spread import Holding, Streams, in_messages, received, spread_entries
from pac_core.runtime.stopwatch import Stopwatch

POLL_SECONDS = 0.02

PLAIN = "@plain"

Given = tuple[dict[str, Any], Mapping[str, Tensor]]
"""Plain data, and tensors by name."""


class Team:
    """A device and those beside it. This class is the device that is alone: all is its own, and nothing is waited for.

    Attributes:
        rank: number of this device; 0 leads: it alone writes files and tells of progress.
        size: number of devices.
        shares: how much each device works on of what all share out, by rank, in any unit.
        bytes_sent: tensors that all devices together have sent to each other.
        transport: connects the devices; None where there is one.
    """

    rank = 0
    size = 1
    shares: Sequence[float] = (1.0,)
    bytes_sent = 0
    transport: Metered | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the device that writes files and tells of progress."""
        return self.rank == 0

    @property
    def waited(self) -> float:
        """Seconds that this device has spent waiting for others."""
        return 0.0

    @property
    def sent(self) -> int:
        """Bytes of tensors that this device has sent."""
        return 0 if self.transport is None else self.transport.sent

    def share_out(self, examples: Sequence[Example], batch_size: int, seed: int) -> Dataset:
        """Who works on which samples: the same on all devices."""
        return share_out(examples, batch_size, seed, self.shares)

    def held(self, missing: Sequence[int], total: int) -> Tensor:
        """(devices, samples) bool: which of ``total`` samples each device has whole in its cache.

        Args:
            missing: those that this one lacks.

        Raises:
            PeerLost: a device is gone.
        """
        marks = torch.ones(1, total, dtype=torch.bool)
        marks[0, list(missing)] = False
        return marks

    def from_leader(self, plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> Given:
        """Plain data and tensors that the leader gives, at every device; errors as in `held`. What the others give is
        not used."""
        return plain, tensors

    def at_leader(self, tensor: Tensor | None) -> list[Tensor]:
        """What every device gives, if anything, by rank, at the leader; nothing elsewhere. Errors as in `held`."""
        return [] if tensor is None else [tensor]

    def bring(self, cache: BoundCache, streams: Streams, data: Dataset, held: Tensor) -> None:
        """Bring to each sample's owner what its cache lacks and another's has; errors as in `held`."""

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
    """Devices that are connected, each with the whole side network, and a cache of its own or one with others.

    Every device calls the same methods in the same order.

    Args:
        transport: connects them.
        shares: of each device by rank, the same on all of them; see `pac_core.shares`.
    """

    def __init__(self, transport: Transport, shares: Sequence[float]) -> None:
        self.transport: Metered = Metered(transport)
        self.rank = transport.rank
        self.size = transport.size
        self.shares = tuple(shares)
        self._others = [rank for rank in range(self.size) if rank != self.rank]
        self._stops = False
        self._meetings = 0
        self._handed = 0
        self._waiting = Stopwatch()
        self._overlap: Overlap | None = None

    @property
    def waited(self) -> float:
        return self._waiting.seconds

    def held(self, missing: Sequence[int], total: int) -> Tensor:
        marks = torch.zeros(self.size, total, dtype=torch.uint8)
        marks[self.rank] = 1
        marks[self.rank, list(missing)] = 0
        self._sum(marks)
        return marks.bool()

    def from_leader(self, plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> Given:
        tag = Tag("leader", self._handed)
        self._handed += 1
        if not self.leads:
            found = received(self.transport, 0, tag, PATIENCE)
            return json.loads(bytes(found.pop(PLAIN).numpy())), found
        text = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
        messages = in_messages(tag, {PLAIN: text, **tensors})
        sent = [self.transport.isend(r, m, timeout=PATIENCE) for m in messages for r in self._others]
        for work in sent:
            work.wait(PATIENCE)
        return plain, tensors

    def at_leader(self, tensor: Tensor | None) -> list[Tensor]:
        tag = Tag("at-leader", self._handed)
        self._handed += 1
        own = {} if tensor is None else {"given": tensor}
        if not self.leads:
            self.transport.isend(0, Message(tag, {}, own), timeout=PATIENCE).wait(PATIENCE)
            return []
        coming = [self.transport.irecv(rank, tag) for rank in self._others]
        return [*own.values(), *(t for work in coming for t in work.wait(PATIENCE).tensors.values())]

    def bring(self, cache: BoundCache, streams: Streams, data: Dataset, held: Tensor) -> None:
        owners = torch.from_numpy(data.owners)
        chosen = (held.any(0) & ~held.gather(0, owners[None])[0]).nonzero()[:, 0].tolist()
        if not chosen:
            return
        one_stage = Plan((StagePlan({"encoder": (0, 1)}, tuple(map(str, range(self.size))), (1,) * self.size),), 1)
        sources = held.to(torch.uint8).argmax(0)
        spread_entries(
            self.transport,
            one_stage,
            Holding(cache, cache, [streams]),
            [data.examples[i] for i in chosen],
            [int(data.owners[i]) for i in chosen],
            sources=[int(sources[i]) for i in chosen],
            timeout=PATIENCE,
        )
        cache.flush()
        cache.refresh()

    def filled(self, cache: BoundCache, stop: StopFlag) -> None:
        self.meet(stop)
        cache.refresh()

    def begin(self, model: PacModel) -> None:
        if not self.transport.waits:
            return
        if self._overlap is None:
            trained = [p for p in model.parameters() if p.requires_grad]
            broadcast = partial(self.transport.broadcast, root=self.shares.index(max(self.shares)), timeout=PATIENCE)
            self._overlap = Overlap(trained, self._add_up, broadcast)
        self._overlap.begin()

    def reduce(self, optimizer: torch.optim.Optimizer, loss: float, stop: bool) -> float:
        united = gradient_vector(optimizer)
        beside = united[-SPARE:]
        beside.copy_(torch.tensor([loss, float(stop)], dtype=united.dtype))
        with self._waiting:
            summed = self._overlap is not None and self._overlap.finish()
            self._add_up(beside if summed else united)
        self._stops = bool(beside[1] > 0)
        return float(beside[0])

    def align(self, model: PacModel) -> None:
        _, tensors = self.from_leader({}, {name: tensor.detach() for name, tensor in model.state_dict().items()})
        if not self.leads:
            model.load_state_dict(tensors)

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
        tag = Tag("meet", 0, self._meetings)
        self._meetings += 1
        coming = [self.transport.irecv(rank, tag) for rank in self._others]
        going = [self.transport.isend(rank, Message(tag)) for rank in self._others]
        with self._waiting:
            for arriving in coming:
                _wait(arriving, stop)
            for leaving in going:
                _wait(leaving, stop)

    def check(self) -> None:
        for rank, reason in self.transport.lost().items():
            raise PeerLost(rank, reason)

    def _sum(self, tensor: Tensor) -> None:
        with self._waiting:
            self._add_up(tensor)

    def _add_up(self, tensor: Tensor) -> None:
        self.transport.all_reduce(tensor, timeout=PATIENCE)
        self.bytes_sent += 2 * (self.size - 1) * tensor.numel() * tensor.element_size()


def _wait(work: Work[Message] | Work[None], stop: StopFlag) -> None:
    while not work.done():
        if stop.requested:
            raise KeyboardInterrupt
        time.sleep(POLL_SECONDS)
    work.wait()
