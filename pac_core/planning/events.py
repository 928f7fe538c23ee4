"""One mini-batch of a plan as discrete events: who computes what when, and which message is under way when.

The schedules are those that the runtime plays (`pac_core.runtime.schedule`), and messages go between the same devices
with the same rows (`pac_core.runtime.routes`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

from pac_core.contracts.cluster import Cluster, DeviceProfile
from pac_core.contracts.scheduler import Plan
from pac_core.planning.cost import Costs, Seconds, all_reduce_s, slice_of, update_s
from pac_core.runtime.schedule import Action, actions_of
from pac_core.spans import Span

Pass = Literal["forward", "backward"]

Actions = Callable[[Plan, int, int], Sequence[Action]]
"""From plan, stage and number of micro-batches to what the stage does; see `pac_core.runtime.schedule`."""

TOLD = 16
"""Bytes that all devices sum at the end of a mini-batch: the loss and the square of the gradients' norm."""


@dataclass(frozen=True)
class Transfer:
    """A message between two devices.

    Attributes:
        source, target: names of the devices.
        kind: ``"forward"`` for states, ``"backward"`` for gradients.
        micro_batch: that it is about.
        size: in bytes.
        asked_s: when it was to be sent; it may have had to wait for the link.
        start_s, end_s: first byte sent, and last byte arrived.
    """

    source: str
    target: str
    kind: Pass
    micro_batch: int
    size: float
    asked_s: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Played:
    """What happened in a mini-batch.

    Attributes:
        seconds: until all devices are done.
        spans: what each device did, in the order in which it ended.
        transfers: messages between stages, in the order in which they were sent.
        reduced_bytes: that devices sent each other to sum gradients.
    """

    seconds: float
    spans: tuple[Span, ...]
    transfers: tuple[Transfer, ...]
    reduced_bytes: float


@dataclass
class _Device:
    """A device while events are played."""

    name: str
    stage: int
    place: int
    profile: DeviceProfile
    actions: Sequence[Action]
    next: int = 0
    busy: bool = False
    arrived: dict[Action, int] = field(default_factory=dict)


def play(
    plan: Plan,
    costs: Costs,
    slices: Sequence[tuple[int, int]],
    cluster: Cluster,
    rows: int,
    actions: Actions = actions_of,
    slowdowns: Sequence[Sequence[float]] = (),
) -> Played:
    """Play one mini-batch of ``rows``.

    Args:
        costs: of the samples.
        slices: for each stage its slice of the chain, as `cost.places` gives it.
        actions: what a stage does with some number of micro-batches, in order; training if not given.
        slowdowns: for each device by rank, factors by which its actions take longer, in their order; none if empty.
    """
    return _Play(plan, costs, slices, cluster, rows, actions, slowdowns).run()


def forward_only(plan: Plan, stage: int, micro_batches: int) -> tuple[Action, ...]:
    """What a stage does where the backbone alone runs: F0 F1 F2 and so on."""
    return tuple(Action("forward", micro) for micro in range(micro_batches))


class _Play:
    """Events are kept in a heap by time; equal times in the order in which they were found."""

    def __init__(
        self,
        plan: Plan,
        costs: Costs,
        slices: Sequence[tuple[int, int]],
        cluster: Cluster,
        rows: int,
        actions: Actions,
        slowdowns: Sequence[Sequence[float]],
    ) -> None:
        self.plan, self.costs, self.slices, self.cluster = plan, costs, slices, cluster
        self.actions, self.slowdowns = actions, slowdowns
        size = plan.micro_batch_size
        self.sizes = [min(size, rows - start) for start in range(0, rows, size)]
        self.shares = {n: [_shares(stage.split(n)) for stage in plan.stages] for n in {*self.sizes}}
        self.devices = list(self._devices())
        self.ranks = [plan.group(stage) for stage in range(len(plan.stages))]
        self.durations: dict[tuple[int, int], Seconds] = {}
        self.common: dict[tuple[int, bool, int], list[tuple[int, int]]] = {}
        self.events: list[tuple[float, int, int, Action, bool]] = []
        self.sending: dict[int | None, float] = {}
        self.receiving: dict[int, float] = {}
        self.spans: list[Span] = []
        self.transfers: list[Transfer] = []

    def _devices(self) -> Iterator[_Device]:
        profiles: Mapping[str, DeviceProfile] = {device.name: device for device in self.cluster.devices}
        for number, stage in enumerate(self.plan.stages):
            actions = self.actions(self.plan, number, len(self.sizes))
            for place, name in enumerate(stage.devices):
                own = [a for a in actions if self._rows(number, place, a.micro)]
                yield _Device(name, number, place, profiles[name], own)

    def run(self) -> Played:
        for rank in range(len(self.devices)):
            self._start(rank, 0.0)
        while self.events:
            now, _, rank, action, arrival = heapq.heappop(self.events)
            device = self.devices[rank]
            if arrival:
                device.arrived[action] = device.arrived.get(action, 0) + 1
            else:
                device.busy = False
                device.next += 1
                self._send(rank, action, now)
            self._start(rank, now)
        return self._reduced()

    def _rows(self, stage: int, place: int, micro: int) -> int:
        first, last = self.shares[self.sizes[micro]][stage][place]
        return last - first

    def _start(self, rank: int, now: float) -> None:
        """Begin the device's next action, if it is free and all that the action needs is there."""
        device = self.devices[rank]
        if device.busy or device.next == len(device.actions):
            return
        action = device.actions[device.next]
        if device.arrived.get(action, 0) < len(self._neighbours(rank, action, incoming=True)):
            return
        device.busy = True
        end = now + self._seconds(rank, action)
        self.spans.append(Span(device.name, action.kind, action.micro, now, end))
        self._push(end, rank, action, arrival=False)

    def _seconds(self, rank: int, action: Action) -> float:
        device = self.devices[rank]
        rows = self._rows(device.stage, device.place, action.micro)
        if (rank, rows) not in self.durations:
            self.durations[rank, rows] = self.costs.seconds(device.profile, *self.slices[device.stage], rows)
        found = self.durations[rank, rows]
        taken = found.forward if action.kind == "forward" else found.backward
        return taken * self.slowdowns[rank][device.next] if self.slowdowns else taken

    def _neighbours(self, rank: int, action: Action, *, incoming: bool) -> list[tuple[int, int]]:
        """Ranks that the action gets messages from, or sends to, and the rows that are in them."""
        key = rank, (action.kind == "forward") == incoming, self.sizes[action.micro]
        if key not in self.common:
            self.common[key] = self._found(*key)
        return self.common[key]

    def _found(self, rank: int, before: bool, size: int) -> list[tuple[int, int]]:
        """Ranks of the stage before or after that have rows in common with this one, and how many."""
        device = self.devices[rank]
        stage = device.stage + (-1 if before else 1)
        if not 0 <= stage < len(self.ranks):
            return []
        shares = self.shares[size]
        first, last = shares[device.stage][device.place]
        common = [(r, min(last, b) - max(first, a)) for r, (a, b) in zip(self.ranks[stage], shares[stage])]
        return [(other, rows) for other, rows in common if rows > 0]

    def _send(self, rank: int, action: Action, now: float) -> None:
        """Send on what an action has found. A device sends one message at a time and receives one at a time."""
        stage = self.devices[rank].stage
        place = self.slices[stage][action.kind == "forward"]
        crossing = self.costs.crossings[place]
        each = crossing.forward if action.kind == "forward" else crossing.backward
        for other, rows in self._neighbours(rank, action, incoming=False):
            source, target = self.devices[rank].name, self.devices[other].name
            link = self.cluster.link(source, target)
            out = None if self.cluster.shared else rank
            begin = max(now, self.sending.get(out, 0.0), self.receiving.get(other, 0.0))
            end = begin + 8 * rows * each / link.bits_per_second
            self.sending[out] = self.receiving[other] = end
            arrived = end + link.latency_s
            self.transfers.append(Transfer(source, target, action.kind, action.micro, rows * each, now, begin, arrived))
            self._push(arrived, other, action, arrival=True)

    def _push(self, time: float, rank: int, action: Action, *, arrival: bool) -> None:
        order = len(self.spans) + len(self.transfers)
        heapq.heappush(self.events, (time, order, rank, action, arrival))

    def _reduced(self) -> Played:
        """Each group sums its gradients once its last device is done, then changes its weights; all sum their loss."""
        sent, end = 0.0, 0.0
        done: dict[str, float] = {}
        for span in self.spans:
            done[span.device] = max(done.get(span.device, 0.0), span.end_s)
        for ranks, (first, last) in zip(self.ranks, self.slices):
            group = [self.devices[rank] for rank in ranks]
            names = [device.name for device in group]
            ready = max(done.get(name, 0.0) for name in names)
            size = slice_of(self.costs.gradient_bytes, first, last)
            taken = all_reduce_s(self.cluster, names, size)
            if taken:
                self.spans += [Span(name, "reduce", None, ready, ready + taken) for name in names]
                sent += 2 * (len(group) - 1) * size
            end = max(end, self._updated(group, size, ready + taken))
        everyone = [device.name for device in self.devices]
        told = all_reduce_s(self.cluster, everyone, TOLD)
        return Played(end + told, tuple(self.spans), tuple(self.transfers), sent)

    def _updated(self, group: Sequence[_Device], size: float, begin: float) -> float:
        """When the last device of a group has changed its weights."""
        end = begin
        for device in group:
            taken = update_s(device.profile, size)
            if taken:
                self.spans.append(Span(device.name, "update", None, begin, begin + taken))
                end = max(end, begin + taken)
        return end


def _shares(split: Sequence[int]) -> list[tuple[int, int]]:
    ends = [0, *accumulate(split)]
    return list(pairwise(ends))
