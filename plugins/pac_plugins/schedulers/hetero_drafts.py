"""Drafts of plans for `pac-hetero`, and the judge that simulates them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.planning.cost import Seconds, all_reduce_s, costs, slice_of
from pac_core.planning.cost import places as slice_places
from pac_core.planning.events import play
from pac_plugins.schedulers.hetero_tables import Tables, kinds, places, recuts
from pac_plugins.schedulers.parts import micro_batches, slices
from pac_plugins.schedulers.rows import rows_that_fit, share_rows

NAME = "pac-hetero"

NUMBERS = 1_000_000
"""Of a table of devices and slices; for larger ones not all places are looked at, but at least `FEWEST`."""

FEWEST = 25

WORK = 500
"""Numbers of a table that take as long as one action does in the simulator."""


Shares = tuple[tuple[int, ...], tuple[int, ...]]
"""Devices of a stage, and their rows."""


@dataclass(frozen=True)
class Draft:
    """A plan in numbers.

    Attributes:
        size: rows of a micro-batch.
        limit: most micro-batches in flight.
        groups: for each stage its devices, by their place in the cluster.
        ends: where each stage ends in the chain.
        rows: for each stage the rows of each device.
    """

    size: int
    limit: int
    groups: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The slice [first, last) of the chain that each stage runs."""
        return tuple(zip((0, *self.ends), self.ends))

    @property
    def used(self) -> frozenset[int]:
        """Devices that are not left out."""
        return frozenset(device for group in self.groups for device in group)


class Judge:
    """Makes drafts that fit, and simulates them, each once, until the budget is used up.

    Attributes:
        left: actions and messages that may still be simulated.
        kinds: for each device the first that does the same in every plan.
    """

    def __init__(self, profile: Profile, cluster: Cluster, job: Job, budget: int) -> None:
        self.profile, self.cluster, self.job, self.left = profile, cluster, job, budget
        self.found = costs(profile, job)
        self.slots = profile.chain()
        self.count = len(cluster.devices)
        self.kinds = kinds(cluster)
        self.tables = Tables(self.found, cluster, places(self.found, max(math.isqrt(NUMBERS // self.count), FEWEST)))
        self.known: dict[Draft, float] = {}
        self.cut: dict[tuple[int, tuple[tuple[int, ...], ...], int], list[tuple[int, ...]]] = {}
        self.share = cache(self._share)
        self.stage_s = cache(self._stage_s)
        self.alone_s = cache(self._alone_s)
        self.routes = cache(self._routes)

    def _share(
        self, group: tuple[int, ...], first: int, last: int, size: int, in_flight: int
    ) -> tuple[int, ...] | None:
        members = [self.cluster.devices[i] for i in group]
        return share_rows(self.found, members, first, last, size, in_flight)

    def _stage_s(
        self, group: tuple[int, ...], rows: tuple[int, ...], first: int, last: int
    ) -> tuple[float, float, float]:
        """Least seconds of a whole micro-batch in each pass, and the most of one device in both."""
        own = self._passes(group, rows, first, last)
        return min(one.forward for one in own), min(one.backward for one in own), max(one.both for one in own)

    def _alone_s(self, group: tuple[int, ...], rows: tuple[int, ...], first: int, last: int) -> tuple[float, ...]:
        """Seconds of a whole micro-batch in both passes, for each device."""
        return tuple(one.both for one in self._passes(group, rows, first, last))

    def _passes(self, group: tuple[int, ...], rows: tuple[int, ...], first: int, last: int) -> list[Seconds]:
        return [self.found.seconds(self.cluster.devices[i], first, last, count) for i, count in zip(group, rows)]

    def draft(
        self, size: int, limit: int, groups: Sequence[tuple[int, ...]], ends: Sequence[int], like: Draft | None = None
    ) -> Draft | None:
        """A draft with rows shared so that each stage is as fast as can be, and as many micro-batches in flight as fit,
        at most ``limit``; None if it does not fit. Stages that ``like`` has keep its rows."""
        ranges = list(zip((0, *ends), ends))
        kept = {} if like is None or like.size != size else dict(zip(zip(like.groups, like.ranges), like.rows))
        self.left -= 1 + sum(map(len, groups)) // 4
        most = min(limit, len(groups), micro_batches(self.job, size))
        for allowed in range(most, 0, -1):
            rows: list[tuple[int, ...]] = []
            for stage, (group, (first, last)) in enumerate(zip(groups, ranges)):
                in_flight = min(len(groups) - stage, allowed)
                own = kept.get((group, (first, last)))
                if own is None or not self.fits(group, own, first, last, in_flight):
                    own = self.share(group, first, last, size, in_flight)
                if own is None:
                    break
                rows.append(own)
            else:
                return Draft(size, allowed, tuple(groups), tuple(ends), tuple(rows))
        return None

    def fits(self, group: Sequence[int], rows: Sequence[int], first: int, last: int, in_flight: int) -> bool:
        """Whether a stage has the memory for its rows."""
        devices = self.cluster.devices
        return all(own <= rows_that_fit(self.found, devices[i], first, last, in_flight) for i, own in zip(group, rows))

    def recuts(self, size: int, groups: Sequence[tuple[int, ...]], limit: int) -> list[tuple[int, ...]]:
        """Ends that suit these groups."""
        if len(groups) >= len(self.tables.cuts) or size < max(map(len, groups)):
            return []
        key = size, tuple(groups), limit
        if key not in self.cut:
            self.left -= sum(map(len, groups)) * len(self.tables.cuts) ** 2 // WORK
            self.cut[key] = recuts(self.tables, groups, size, micro_batches(self.job, size), limit)
        return self.cut[key]

    def with_rows(self, draft: Draft, stage: int, rows: tuple[int, ...]) -> Draft | None:
        """The draft with other rows in one stage; None if it does not fit."""
        in_flight = min(len(draft.groups) - stage, draft.limit)
        if not self.fits(draft.groups[stage], rows, *draft.ranges[stage], in_flight):
            return None
        changed = (*draft.rows[:stage], rows, *draft.rows[stage + 1 :])
        return Draft(draft.size, draft.limit, draft.groups, draft.ends, changed)

    def of(self, plan: Plan) -> Draft:
        """The draft of a plan that another scheduler made."""
        numbers = {device.name: i for i, device in enumerate(self.cluster.devices)}
        groups = tuple(tuple(numbers[name] for name in stage.devices) for stage in plan.stages)
        ends = tuple(slice_places(self.profile, stage)[1] for stage in plan.stages)
        rows = tuple(stage.rows for stage in plan.stages)
        return Draft(plan.micro_batch_size, plan.most_in_flight(0), groups, ends, rows)

    def plan(self, draft: Draft) -> Plan:
        """The draft as a plan."""
        devices, count = self.cluster.devices, micro_batches(self.job, draft.size)
        stages = tuple(
            StagePlan(slices(self.slots[first:last]), tuple(devices[i].name for i in group), rows)
            for group, (first, last), rows in zip(draft.groups, draft.ranges, draft.rows)
        )
        most = min(len(stages), count)
        return Plan(stages, count, scheduler=NAME, in_flight=None if draft.limit >= most else draft.limit)

    def bound(self, draft: Draft) -> float:
        """Seconds that the draft cannot be below: each stage waits for the first micro-batch and works on all, and the
        last gradients go back; the busiest port is never free. A smaller micro-batch at the end counts as none."""
        whole = self.job.batch_size // draft.size
        ragged = whole * draft.size < self.job.batch_size
        most = whole * self._port_s(draft)
        before = 0.0
        for group, rows, (first, last) in zip(draft.groups, draft.rows, draft.ranges):
            forward, backward, slowest = self.stage_s(group, rows, first, last)
            most = max(most, before + whole * slowest)
            before += forward + (0.0 if ragged else backward)
        return most

    def _port_s(self, draft: Draft) -> float:
        """Seconds that the busiest device sends or gets messages of a whole micro-batch; on a shared medium all do."""
        ways = [
            self.routes(*both) for both in zip(zip(draft.groups, draft.rows), zip(draft.groups[1:], draft.rows[1:]))
        ]
        crossings = [self.found.crossings[end] for end in draft.ends[:-1]]
        if self.cluster.shared:
            return sum((c.forward + c.backward) * sum(s for _, _, s in way) for c, way in zip(crossings, ways))
        sent: dict[int, float] = {}
        got: dict[int, float] = {}
        for crossing, way in zip(crossings, ways):
            for one, other, seconds in way:
                for source, target, size in ((one, other, crossing.forward), (other, one, crossing.backward)):
                    sent[source] = sent.get(source, 0.0) + size * seconds
                    got[target] = got.get(target, 0.0) + size * seconds
        return max([*sent.values(), *got.values()], default=0.0)

    def _routes(self, one: Shares, other: Shares) -> list[tuple[int, int, float]]:
        """Which device of one stage has rows in common with which of the next, and the seconds of a byte of each."""
        ahead, behind = (list(zip(group, pairwise(accumulate(rows, initial=0)))) for group, rows in (one, other))
        common = [(i, j, min(b, d) - max(a, c)) for i, (a, b) in ahead for j, (c, d) in behind]
        return [(i, j, rows * float(self.tables.per_byte[i, j])) for i, j, rows in common if rows > 0]

    def estimate(self, draft: Draft) -> float:
        """Seconds of a mini-batch, roughly: one micro-batch goes through all stages and back; the others follow at the
        pace of the slowest stage, of the busiest port, or of the stage that waits longest until one of those that
        it may have in flight comes back. Gradients are summed at the end."""
        count = micro_batches(self.job, draft.size)
        trips = self._trips(draft)
        pace, reduced = self._port_s(draft), 0.0
        for stage, (group, (first, last)) in enumerate(zip(draft.groups, draft.ranges)):
            in_flight = min(len(draft.groups) - stage, draft.limit, count)
            pace = max(pace, self.stage_s(group, draft.rows[stage], first, last)[2], trips[stage] / in_flight)
            names = [self.cluster.devices[i].name for i in group]
            reduced = max(reduced, all_reduce_s(self.cluster, names, slice_of(self.found.gradient_bytes, first, last)))
        return trips[0] + (count - 1) * pace + reduced

    def _trips(self, draft: Draft) -> list[float]:
        """For each stage the longest that its part of a micro-batch takes until it is back, both passes included."""
        trips: list[float] = []
        behind: dict[int, float] = {}
        for stage in reversed(range(len(draft.groups))):
            group, rows = draft.groups[stage], draft.rows[stage]
            own = dict(zip(group, self.alone_s(group, rows, *draft.ranges[stage])))
            if behind:
                crossing = self.found.crossings[draft.ends[stage]]
                size, latency = crossing.forward + crossing.backward, 2 * self.cluster.default.latency_s
                routes = self.routes((group, rows), (draft.groups[stage + 1], draft.rows[stage + 1]))
                own = {
                    one: taken + max(latency + size * s + behind[other] for source, other, s in routes if source == one)
                    for one, taken in own.items()
                }
            behind = own
            trips.append(max(own.values()))
        return trips[::-1]

    def seconds(self, draft: Draft, below: float = math.inf) -> float:
        """Simulated seconds of a mini-batch; infinite if they cannot be ``below``, or the budget is used up."""
        if draft in self.known:
            return self.known[draft]
        if self.left <= 0 or self.bound(draft) >= below:
            return math.inf
        played = play(self.plan(draft), self.found, draft.ranges, self.cluster, self.job.batch_size)
        self.left -= len(played.spans) + len(played.transfers)
        self.known[draft] = played.seconds
        return played.seconds

    def best(self, drafts: Iterable[Draft], near: float) -> list[tuple[float, Draft]]:
        """Drafts with their seconds, as far as half of the budget goes, the fastest first; those that take more than
        ``near`` times as long as a better one may be left out."""
        half = self.left // 2
        judged: list[tuple[float, Draft]] = []
        fastest = math.inf
        for draft in sorted(dict.fromkeys(drafts), key=self.estimate):
            seconds = self.seconds(draft, fastest * near) if self.left > half else math.inf
            if math.isfinite(seconds):
                judged.append((seconds, draft))
                fastest = min(fastest, seconds)
        return sorted(judged, key=lambda pair: pair[0])
