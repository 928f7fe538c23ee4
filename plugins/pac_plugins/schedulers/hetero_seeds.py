"""Where the local search of `pac-hetero` begins: a recursion over sets of devices and places of the chain.

From the last stage to the first. Its value is the time of one micro-batch through all stages and its messages, under
the condition that no stage takes longer than a given time: for several such times, since a mini-batch takes about the
one and, for each further micro-batch, the other. Memory counts the micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pac_plugins.schedulers.hetero_tables import Along, Matrix, Tables, together

SUBSETS = 6
"""Devices of which all sets are looked at, so in all orders; of more, the beginnings of some orders."""

SLOWEST = (1.0, 1.03, 1.08, 1.15, 1.25, 1.4, 1.6, 1.9, 2.3, 3.0, 4.5, 8.0, 16.0, 64.0, np.inf)
FEWER = (1.05, 1.25, 1.6, 2.5, 8.0, np.inf)
"""What a stage may take for a micro-batch, in times that all devices together would take for all layers."""

GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Sizes of groups along an order of many devices."""

Found = tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]
"""Groups and ends."""


@dataclass(frozen=True)
class Sets:
    """Sets of devices that stages from some place on may take, each with the smaller ones that it grows from.

    Attributes:
        smaller: for each set the numbers of those; the first set is empty.
        groups: for each of these the devices that come in.
        order: of which all sets are beginnings, if they are.
    """

    smaller: list[NDArray[np.intp]]
    groups: list[list[tuple[int, ...]]]
    order: tuple[int, ...] | None = None


def all_sets(kinds: Sequence[int]) -> Sets:
    """All sets of devices, of sets that are alike the first: of each kind its first devices, in order.

    Args:
        kinds: for each device the first of its kind.
    """
    count = len(kinds)
    before = [max((j for j in range(i) if kinds[j] == kinds[i]), default=None) for i in range(count)]
    sets = [
        bits
        for bits in range(1 << count)
        if all(not bits >> i & 1 or j is None or bits >> j & 1 for i, j in enumerate(before))
    ]
    smaller: list[NDArray[np.intp]] = []
    groups: list[list[tuple[int, ...]]] = []
    for bits in sets:
        parts = [(number, rest) for number, rest in enumerate(sets) if rest & bits == rest != bits]
        smaller.append(np.array([number for number, _ in parts], dtype=np.intp))
        groups.append([tuple(i for i in range(count) if (bits ^ rest) >> i & 1) for _, rest in parts])
    return Sets(smaller, groups)


def along(order: Sequence[int], most: int) -> Sets:
    """The beginnings of an order of devices, the last stage's first, grown by at most ``most`` devices."""
    smaller: list[NDArray[np.intp]] = []
    groups: list[list[tuple[int, ...]]] = []
    for count in range(len(order) + 1):
        counts = [group for group in GROUPS if group <= min(count, most)]
        if 0 < count <= most and count not in GROUPS:
            counts.append(count)
        smaller.append(np.array([count - group for group in counts], dtype=np.intp))
        groups.append([tuple(order[count - group : count]) for group in counts])
    return Sets(smaller, groups, tuple(order))


class Recursion:
    """Values over (stages behind that count for memory, way, place), for each set of devices.

    Args:
        limit: most micro-batches in flight that memory is counted for.
        part: of the way from the fastest link to the mean of those that may be used.
    """

    def __init__(
        self,
        tables: Tables,
        sets: Sets,
        size: int,
        count: int,
        limit: int,
        slowest: Sequence[float],
        part: float = 0.0,
    ) -> None:
        self.tables, self.sets, self.size, self.count, self.limit = tables, sets, size, count, limit
        self.part = part
        least = float(together(tables.base, tables.each, size)[0, -1])
        weights = [float(count), 1.0] if count > 1 and (tables.cluster.shared or sets.order is None) else [1.0]
        self.ways = [(least * factor, weight) for weight in weights for factor in slowest]
        self.bound = np.array([way[0] for way in self.ways])[:, None, None]
        self.weight = np.array([way[1] for way in self.ways])
        places = len(tables.cuts)
        nothing = np.full((limit + 1, len(self.ways), places), np.inf)
        begin = nothing.copy()
        begin[0, :, -1] = 0.0
        self.values = [begin]
        self.along = None if sets.order is None else Along(tables, sets.order, size)
        self.chosen: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = [(np.empty(0, np.intp), np.empty(0, np.intp))]
        for number in range(1, len(sets.groups)):
            self._grow(number, nothing)

    def _grow(self, number: int, nothing: Matrix) -> None:
        """Values of one set: for each group that comes in the best place where its stage ends."""
        smaller, groups = self.sets.smaller[number], self.sets.groups[number]
        before = np.stack([self.values[i] for i in smaller])  # (groups, limit + 1, ways, places)
        behind = before[:, :-1].copy()
        behind[:, -1] = np.minimum(behind[:, -1], before[:, -1])
        extra = np.stack([self.tables.all_reduce(group) for group in groups])  # (groups, from, to)
        sent = self._sent(number)  # (groups, to)
        ports = self._ports(number)  # (groups, from, to)
        value, place, group_of = nothing.copy(), np.zeros(nothing.shape, np.intp), np.zeros(nothing.shape, np.intp)
        for level in range(1, self.limit + 1):
            in_flight = min(level, self.count)
            times = self._times(number, in_flight)
            own = (times + extra)[:, None] + (self.weight[None, :, None] * sent[:, None, :])[:, :, None, :]
            busy = np.maximum(times, ports)[:, None]
            own = np.where(busy <= self.bound[None], own, np.inf)  # (groups, ways, from, to)
            total = own + behind[:, level - 1, :, None, :]
            ends = total.argmin(axis=3)
            least = np.take_along_axis(total, ends[..., None], axis=3)[..., 0]  # (groups, ways, from)
            best = least.argmin(axis=0)
            value[level] = np.take_along_axis(least, best[None], axis=0)[0]
            place[level] = np.take_along_axis(ends, best[None], axis=0)[0]
            group_of[level] = best
        self.values.append(value)
        self.chosen.append((group_of, place))

    def _times(self, number: int, in_flight: int) -> Matrix:
        """Seconds of the slowest device of each group that comes in."""
        if self.along is not None:
            return self.along.times(self.sets.smaller[number], number, in_flight)
        return np.stack([self.tables.stage(group, self.size, in_flight) for group in self.sets.groups[number]])

    def _sent(self, number: int) -> Matrix:
        """Seconds of a micro-batch's messages to the stage behind and back, for each group and end."""
        links = [self._link(int(smaller), group) for smaller, group in self._grown(number)]
        latency, per_byte = (np.array(values)[:, None] for values in zip(*links))
        sent = 2 * latency + self.size * per_byte * (self.tables.ahead + self.tables.back)
        sent[self.sets.smaller[number] == 0] = 0.0
        return np.asarray(sent)

    def _ports(self, number: int) -> Matrix:
        """Seconds in which a device of each group sends, or gets, its part of a micro-batch's messages."""
        links = [self._link(int(smaller), group)[1] / len(group) for smaller, group in self._grown(number)]
        return self.size * np.array(links)[:, None, None] * self.tables.busiest

    def _grown(self, number: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        return zip(self.sets.smaller[number].tolist(), self.sets.groups[number])

    def _link(self, smaller: int, group: tuple[int, ...]) -> tuple[float, float]:
        """Latency and seconds of a byte between a group and those that may be the stage behind."""
        others = self._nearest(smaller)
        if not others:
            return self.tables.cluster.default.latency_s, 8 / self.tables.cluster.default.bits_per_second
        pair = np.ix_(group, others)
        latency, per_byte = self.tables.latency[pair], self.tables.per_byte[pair]
        least, mean = float(per_byte.min()), float(per_byte.mean())
        return float(latency.mean()), least + self.part * (mean - least)

    def _nearest(self, number: int) -> tuple[int, ...]:
        """Devices that the stage behind may have."""
        groups = self.sets.groups[number]
        return groups[0] if groups else ()

    def best(self, most: int) -> Iterator[Found]:
        """For each way and each number of stages that is told apart at most so many sets, the best first."""
        finals = np.stack([values[1:, :, 0] for values in self.values[1:]])  # (sets, limit, ways)
        for way in range(len(self.ways)):
            for level in range(1, self.limit + 1):
                own = finals[:, level - 1, way]
                for at in np.argsort(own, kind="stable")[:most]:
                    if np.isfinite(own[at]):
                        yield self._traced(int(at) + 1, level, way)

    def _traced(self, number: int, level: int, way: int) -> Found:
        place, last = 0, len(self.tables.cuts) - 1
        groups, ends = [], []
        while place < last:
            group_of, place_of = self.chosen[number]
            group = int(group_of[level, way, place])
            place = int(place_of[level, way, place])
            groups.append(self.sets.groups[number][group])
            ends.append(self.tables.cuts[place])
            number = int(self.sets.smaller[number][group])
            before = self.values[number]
            deeper = level == self.limit and before[level, way, place] <= before[level - 1, way, place]
            level = level if deeper else level - 1
        return tuple(groups), tuple(ends)
