"""Every plan there is, simulated: for small clusters, and to judge other schedulers by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise, permutations, product

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import Costs, Seconds, all_reduce_s, costs, slice_of, transfer_s
from pac_core.planning.events import play
from pac_plugins.schedulers.fitting import why_none
from pac_plugins.schedulers.parts import micro_batches, slices
from pac_plugins.schedulers.rows import rows_that_fit, share_rows, sizes

MOST = 8
"""Devices beyond which trying everything would take hours."""

SPLITS = 35
"""Ways to split rows that are all tried; of more, the one alone that `share_rows` gives."""

ORDERS = 12
"""Orders of devices inside of a plan's groups that are all tried; of more, the cluster's alone. They decide who sends
which rows to whom."""


class ExhaustiveScheduler(Scheduler):
    """The plan whose mini-batch takes least time in the simulator.

    Of all numbers of stages, groups of devices, cuts, splits of rows, and limits of micro-batches in flight; devices
    may be left out. In groups that are large, rows are split only so that the slowest device is as fast as can be, and
    devices stay in the cluster's order (see `SPLITS`, `ORDERS`). A plan is simulated only if a bound below its time is
    better than the best so far.
    """

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        if len(cluster.devices) > MOST:
            raise BadInput(f"exhaustive tries every plan, for at most {MOST} devices; choose another scheduler")
        best = faster_plan(profile, cluster, job, math.inf)
        if best is None:
            raise BadInput(why_none(profile, cluster, job))
        return best


def faster_plan(profile: Profile, cluster: Cluster, job: Job, seconds: float, steps: float = math.inf) -> Plan | None:
    """The best of all plans whose mini-batch takes less than ``seconds`` in the simulator; None if there is none.

    Args:
        steps: beginnings of plans that are looked at; with fewer than there are it is the best of those looked at.
    """
    found = costs(profile, job)
    best: tuple[float, Plan | None] = (seconds, None)
    for size in sizes(job):
        search = _Search(profile, found, cluster, job, size, steps)
        best = search.run(best)
        steps = search.steps
    return best[1]


@dataclass(frozen=True)
class _Stage:
    """A stage that has been decided on.

    Attributes:
        quickest: the least that a whole micro-batch takes any of its devices, in each pass.
        slowest: the most that it takes one of them in both.
        reduced: the least in which they sum their gradients.
    """

    members: tuple[DeviceProfile, ...]
    rows: tuple[int, ...]
    first: int
    last: int
    quickest: Seconds
    slowest: float
    reduced: float


class _Search:
    """All plans with micro-batches of one size."""

    def __init__(self, profile: Profile, found: Costs, cluster: Cluster, job: Job, size: int, steps: float) -> None:
        self.steps = steps
        self.slots = profile.chain()
        self.found, self.cluster, self.size = found, cluster, size
        self.batch, self.count = job.batch_size, micro_batches(job, size)
        self.best: tuple[float, Plan | None] = (math.inf, None)
        self.ways, self.rest = cache(self._ways), cache(self._rest)
        links = [cluster.default, *cluster.links.values()]
        self.link = Link(max(link.bits_per_second for link in links), min(link.latency_s for link in links))

    def run(self, best: tuple[float, Plan | None]) -> tuple[float, Plan | None]:
        """The better one of ``best`` and what this search finds, as seconds and plan."""
        self.best = best
        for stages in range(1, min(len(self.cluster.devices), self.found.layers) + 1):
            most = min(stages, self.count)
            for limit in range(most, 0 if self._is_short(most) else most - 1, -1):
                self._extend((), stages, limit, self.cluster.devices)
        return self.best

    def _is_short(self, in_flight: int) -> bool:
        """Whether memory may rule out a stage: then fewer micro-batches in flight are tried as well."""
        needed = self.found.bytes(0, self.found.layers, self.size, in_flight)
        return any(needed > device.memory_bytes for device in self.cluster.devices)

    def _extend(self, done: tuple[_Stage, ...], stages: int, limit: int, free: tuple[DeviceProfile, ...]) -> None:
        """Try every next stage behind those that are ``done``."""
        if len(done) == stages:
            self._judge(done, limit)
            return
        start = done[-1].last if done else 0
        ends = [end for end in self.found.cuts if end > start]
        if len(done) + 1 == stages:
            ends = ends[-1:]
        in_flight = min(stages - len(done), limit)
        for members in _groups(free, self.cluster):
            left = tuple(device for device in free if device not in members)
            for end in ends:
                ways = self.ways(members, start, end, in_flight)
                if not ways:
                    break
                for stage in ways:
                    self.steps -= 1
                    if self.steps < 0:
                        return
                    if self._bound((*done, stage), left) < self.best[0]:
                        self._extend((*done, stage), stages, limit, left)

    def _ways(self, members: tuple[DeviceProfile, ...], first: int, last: int, in_flight: int) -> list[_Stage]:
        """The stage with rows split in each way that fits, the best first."""
        splits = _splits(self.size, len(members))
        if splits is None:
            best = share_rows(self.found, members, first, last, self.size, in_flight)
            splits = [] if best is None else [best]
        room = [rows_that_fit(self.found, member, first, last, in_flight) for member in members]
        fitting = [rows for rows in splits if all(own <= most for own, most in zip(rows, room))]
        return sorted((self._stage(members, rows, first, last) for rows in fitting), key=lambda stage: stage.slowest)

    def _stage(self, members: tuple[DeviceProfile, ...], rows: tuple[int, ...], first: int, last: int) -> _Stage:
        own = [self.found.seconds(member, first, last, count) for member, count in zip(members, rows)]
        quickest = Seconds(min(one.forward for one in own), min(one.backward for one in own))
        size = slice_of(self.found.gradient_bytes, first, last)
        fastest = replace(self.cluster, default=self.link, links={})
        reduced = all_reduce_s(fastest, [member.name for member in members], size)
        return _Stage(members, rows, first, last, quickest, max(one.both for one in own), reduced)

    def _bound(self, done: Sequence[_Stage], left: tuple[DeviceProfile, ...]) -> float:
        """Seconds that no plan which begins so can be below: each stage waits for the first micro-batch, works on all
        and sums its gradients; the last gradients go back. A smaller micro-batch at the end counts as none."""
        whole = self.batch // self.size
        returns = whole == self.count
        before, most = 0.0, 0.0
        for stage in done:
            most = max(most, before + whole * stage.slowest + stage.reduced)
            crossing = self.found.crossings[stage.last]  # of one row, over the fastest link that there is
            before += stage.quickest.forward + transfer_s(self.link, crossing.forward)
            before += stage.quickest.backward + transfer_s(self.link, crossing.backward) if returns else 0.0
        if not left or done[-1].last == self.found.layers:
            return most
        return max(most, before + self.rest(done[-1].last, left))

    def _rest(self, first: int, left: tuple[DeviceProfile, ...]) -> float:
        """Seconds that the devices which are left cannot be below with the layers from ``first`` on, messages apart:
        as if each layer were the device's that does it best compared with all of them, and none ever waited."""
        last = self.found.layers
        alone = [self._row_s(device, first, last) for device in left]
        if min(alone) <= 0:
            return 0.0
        best = sum(
            min(self._row_s(device, layer, layer + 1) / whole for device, whole in zip(left, alone))
            for layer in range(first, last)
        )
        return self.batch * best / sum(1 / whole for whole in alone)

    def _row_s(self, device: DeviceProfile, first: int, last: int) -> float:
        """What a row adds to a device's work in a slice."""
        return self.found.seconds(device, first, last, 1).both - self.found.seconds(device, first, last, 0).both

    def _judge(self, stages: Sequence[_Stage], limit: int) -> None:
        """Simulate the plan, with the devices of each group in any order."""
        places = [(stage.first, stage.last) for stage in stages]
        for ordered in _orders(stages):
            held = tuple(
                StagePlan(slices(self.slots[first:last]), tuple(d.name for d, _ in group), tuple(r for _, r in group))
                for group, (first, last) in zip(ordered, places)
            )
            most = min(len(stages), self.count)
            plan = Plan(held, self.count, scheduler="exhaustive", in_flight=None if limit == most else limit)
            seconds = play(plan, self.found, places, self.cluster, self.batch).seconds
            if seconds < self.best[0]:
                self.best = seconds, plan


Shares = Sequence[tuple[DeviceProfile, int]]
"""Devices of a group, each with its rows."""


def _orders(stages: Sequence[_Stage]) -> Iterable[Sequence[Shares]]:
    """Each group's devices with their rows, in all orders if there are not too many. A stage alone sends nothing."""
    given = [list(zip(stage.members, stage.rows)) for stage in stages]
    if len(stages) == 1 or math.prod(math.factorial(len(group)) for group in given) > ORDERS:
        return [given]
    return product(*(list(permutations(group)) for group in given))


def _splits(size: int, count: int) -> list[tuple[int, ...]] | None:
    """All ways to give ``size`` rows to ``count`` devices, at least one each; None if there are too many."""
    if math.comb(size - 1, count - 1) > SPLITS:
        return None
    marks = combinations(range(1, size), count - 1)
    return [tuple(b - a for a, b in pairwise((0, *cut, size))) for cut in marks]


def _kind(device: DeviceProfile, cluster: Cluster) -> DeviceProfile:
    """Equal for devices that do the same in every plan."""
    return device if cluster.links else replace(device, name="")


def _groups(free: tuple[DeviceProfile, ...], cluster: Cluster) -> Iterator[tuple[DeviceProfile, ...]]:
    """Every group of free devices; of groups that are alike the first."""
    kinds: dict[DeviceProfile, list[DeviceProfile]] = {}
    for device in free:
        kinds.setdefault(_kind(device, cluster), []).append(device)
    for counts in product(*(range(len(alike), -1, -1) for alike in kinds.values())):
        if any(counts):
            yield tuple(device for alike, count in zip(kinds.values(), counts) for device in alike[:count])
