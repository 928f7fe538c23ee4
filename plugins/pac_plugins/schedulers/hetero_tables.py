"""Tables of what slices cost device groups, for `pac-hetero`: matrices over the places where stages begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pac_core.contracts.cluster import Cluster, DeviceProfile
from pac_core.planning.cost import Costs

Matrix = NDArray[np.float64]

EXACT = 200_000
"""Numbers up to which rows are counted one by one; of more, the devices of a group are taken to be done together."""

LOOSER = (1 + 1e-9, 1.15, 1.5, np.inf)
"""What the slowest stage may take in `recuts`, in times that it takes at least."""


class Tables:
    """Costs of all slices between the places ``cuts``, entry [i, j] of a matrix from place i to place j.

    Attributes:
        cuts: places of the chain, its end included.
        base, each: seconds of both passes without any row, and what a row adds: (device, from, to).
        busiest: bytes of a row that a device sends, or gets, whatever is more: (from, to).
    """

    def __init__(self, found: Costs, cluster: Cluster, cuts: Sequence[int]) -> None:
        self.found, self.cluster, self.cuts = found, cluster, tuple(cuts)
        none = np.array([[found.seconds(d, 0, cut, 0).both for cut in cuts] for d in cluster.devices])
        one = np.array([[found.seconds(d, 0, cut, 1).both for cut in cuts] for d in cluster.devices])
        self.base = none[:, None, :] - none[:, :, None]
        self.each = np.maximum(one[:, None, :] - one[:, :, None] - self.base, 0.0)
        self.held = _between(np.array(found.held_bytes)[list(cuts)])
        self.kept = np.maximum(_between(np.array(found.kept_bytes)[list(cuts)]), 1e-9)
        self.gradients = _between(np.array(found.gradient_bytes)[list(cuts)])
        self.memory = np.array([device.memory_bytes for device in cluster.devices], dtype=np.float64)
        self.ahead = np.array([found.crossings[cut].forward for cut in cuts])
        self.back = np.array([found.crossings[cut].backward for cut in cuts])
        self.busiest = np.maximum(self.ahead + self.back[:, None], self.ahead[:, None] + self.back)
        self.forward = np.triu(np.ones((len(cuts), len(cuts)), dtype=bool), 1)
        self.latency, self.per_byte = _links(cluster)
        self.stage = cache(self._stage)

    def room(self, device: int, in_flight: int) -> Matrix:
        """Rows that a device has memory for."""
        rows: Matrix = np.floor((self.memory[device] - self.held) / (in_flight * self.kept))
        return rows

    def is_short(self, size: int, in_flight: int) -> bool:
        """Whether some device lacks memory for all layers and rows."""
        needed = self.held[0, -1] + in_flight * size * self.kept[0, -1]
        return bool((self.memory < needed).any())

    def _stage(self, group: tuple[int, ...], size: int, in_flight: int) -> Matrix:
        """Seconds of both passes of the slowest device with rows shared as well as can be; infinite if it does not fit.

        Exactly, that is the time of the last row if rows go to whom they are done first by.
        """
        members = list(group)
        room = np.stack([self.room(device, in_flight) for device in members])
        base, each = self.base[members], self.each[members]
        allowed = self.forward & (room >= 1).all(axis=0) & (np.minimum(room, size).sum(axis=0) >= size)
        rest = size - len(members)
        seconds = (base + each).max(axis=0)
        if rest < 0:
            allowed = np.zeros_like(allowed)
        elif rest > 0 and rest * each.size <= EXACT:
            rows = np.arange(2, rest + 2, dtype=np.float64)[:, None, None, None]
            done = np.where(rows <= room, base + rows * each, np.inf).reshape(-1, *base.shape[1:])
            seconds = np.maximum(seconds, np.partition(done, rest - 1, axis=0)[rest - 1])
        else:
            seconds = np.maximum(seconds, together(base, each, size))
        return np.where(allowed, seconds, np.inf)

    def all_reduce(self, group: Sequence[int]) -> Matrix:
        """Seconds in which the group sums its gradients."""
        count = len(group)
        if count == 1:
            return np.zeros_like(self.gradients)
        ring = list(group), [*group[1:], group[0]]
        turns = count if self.cluster.shared else 1
        slowest = self.per_byte[ring].max() * turns * self.gradients / count
        return np.where(self.gradients > 0, 2 * (count - 1) * (self.latency[ring].max() + slowest), 0.0)


class Along:
    """What groups of neighbours along an order of many devices take: differences of sums over its beginnings."""

    def __init__(self, tables: Tables, order: Sequence[int], size: int) -> None:
        self.tables, self.order, self.size = tables, list(order), size
        rates = 1 / np.maximum(tables.each[self.order], 1e-30)
        self.rates, self.bases = _beginnings(rates), _beginnings(tables.base[self.order] * rates)
        self.rows = cache(self._rows)

    def _rows(self, in_flight: int) -> tuple[Matrix, Matrix]:
        """Rows that there is memory for, and devices that have none for a single one."""
        room = np.stack([self.tables.room(device, in_flight) for device in self.order])
        return _beginnings(np.clip(room, 0, self.size)), _beginnings((room < 1).astype(np.float64))

    def times(self, starts: NDArray[np.intp], end: int, in_flight: int) -> Matrix:
        """As `Tables.stage` for the groups from each of ``starts`` to ``end``, all devices done together."""
        room, without = self.rows(in_flight)
        seconds = (self.size + self.bases[end] - self.bases[starts]) / (self.rates[end] - self.rates[starts])
        fits = (room[end] - room[starts] >= self.size) & (without[end] - without[starts] == 0)
        enough = (end - starts <= self.size)[:, None, None]
        return np.where(fits & enough & self.tables.forward, seconds, np.inf)


def _beginnings(numbers: Matrix) -> Matrix:
    """Sums of no, one, two, ... of the first."""
    return np.concatenate([np.zeros_like(numbers[:1]), np.cumsum(numbers, axis=0)])


def together(base: Matrix, each: Matrix, size: int) -> Matrix:
    """Seconds until devices are done if each has as many rows, or parts of rows, that all are at once."""
    rates = 1 / np.maximum(each, 1e-30)
    times: Matrix = (size + (base * rates).sum(axis=0)) / rates.sum(axis=0)
    return times


def places(found: Costs, most: int) -> tuple[int, ...]:
    """All places where a stage may begin, and the end; of more than ``most`` those that cut the work evenly."""
    if len(found.cuts) <= most:
        return found.cuts
    work = np.array(found.forward_flops) + np.array(found.backward_flops)
    inner = np.array(found.cuts[1:-1])
    wanted = np.linspace(0.0, work[-1], most)[1:-1]
    nearest = np.abs(work[inner][None, :] - wanted[:, None]).argmin(axis=1)
    return (0, *(int(cut) for cut in np.unique(inner[nearest])), found.layers)


def recuts(
    tables: Tables, groups: Sequence[tuple[int, ...]], size: int, count: int, limit: int
) -> list[tuple[int, ...]]:
    """Ends for these groups: for several times that no stage takes longer than, the least sum of all stages."""
    stages = len(groups)
    times = [tables.stage(group, size, min(stages - i, limit, count)) for i, group in enumerate(groups)]
    slowest = np.full(len(tables.cuts), np.inf)
    slowest[-1] = 0.0
    for own in reversed(times):
        slowest = np.maximum(own, slowest[None, :]).min(axis=1)
    if not np.isfinite(slowest[0]):
        return []
    ways = [_least_sum(tables, times, float(slowest[0]) * factor) for factor in LOOSER]
    return list(dict.fromkeys(ways))


def _least_sum(tables: Tables, times: Sequence[Matrix], bound: float) -> tuple[int, ...]:
    value = np.full(len(tables.cuts), np.inf)
    value[-1] = 0.0
    chosen = []
    for own in reversed(times):
        total = np.where(own <= bound, own, np.inf) + value[None, :]
        chosen.append(total.argmin(axis=1))
        value = total.min(axis=1)
    place, ends = 0, []
    for ends_of in reversed(chosen):
        place = int(ends_of[place])
        ends.append(tables.cuts[place])
    return tuple(ends)


def _between(sums: Matrix) -> Matrix:
    return sums[None, :] - sums[:, None]


def _links(cluster: Cluster) -> tuple[Matrix, Matrix]:
    """Latency, and seconds of a byte, from each device to each."""
    count = len(cluster.devices)
    latency = np.full((count, count), cluster.default.latency_s)
    per_byte = np.full((count, count), 8 / cluster.default.bits_per_second)
    numbers = {device.name: i for i, device in enumerate(cluster.devices)}
    for one, other in cluster.links:
        if one in numbers and other in numbers:
            link, ends = cluster.link(one, other), (numbers[one], numbers[other])
            for pair in (ends, ends[::-1]):
                latency[pair], per_byte[pair] = link.latency_s, 8 / link.bits_per_second
    return latency, per_byte


def kinds(cluster: Cluster) -> tuple[int, ...]:
    """For each device the first one that does the same in every plan."""
    if cluster.links:
        return tuple(range(len(cluster.devices)))
    first: dict[DeviceProfile, int] = {}
    return tuple(first.setdefault(replace(device, name=""), i) for i, device in enumerate(cluster.devices))
