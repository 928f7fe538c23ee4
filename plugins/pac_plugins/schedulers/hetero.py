"""Stages of device groups for devices that differ, as the simulator finds them best."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler
from pac_core.errors import BadInput
from pac_core.planning.profile import quantised
from pac_plugins.schedulers.data_parallel import DataParallelScheduler
from pac_plugins.schedulers.exhaustive import faster_plan
from pac_plugins.schedulers.fitting import why_none
from pac_plugins.schedulers.hetero_drafts import NAME, Draft, Judge
from pac_plugins.schedulers.hetero_moves import neighbours
from pac_plugins.schedulers.hetero_seeds import FEWER, SLOWEST, SUBSETS, Recursion, Sets, all_sets, along
from pac_plugins.schedulers.hetero_tables import Tables, places
from pac_plugins.schedulers.pac import PacScheduler
from pac_plugins.schedulers.parts import micro_batches
from pac_plugins.schedulers.pipeline import PipelineScheduler
from pac_plugins.schedulers.rows import sizes
from pac_plugins.schedulers.single import SingleScheduler

OTHERS: tuple[type[Scheduler], ...] = (SingleScheduler, DataParallelScheduler, PipelineScheduler, PacScheduler)
"""Whose plans are looked at first, so that none of them is better."""

MANY = 64
"""Devices beyond which the recursion of `pac`, the last of these, takes too long."""

BUDGET = 200_000
"""Actions and messages that are simulated for one plan."""

PLACES = 34
"""Of the chain where the recursion looks at cuts, evenly by work."""

JUDGED = 40
"""Drafts of the recursion that are simulated for each size of micro-batches, at most."""

STEPS = 100_000
"""Beginnings of plans that are looked at in the end with few devices and layers: mostly enough for all."""

LAYERS = 12
"""Of the chain, at most, for that."""

MEDIUM = 24
"""Layers up to which the recursion is asked in all its ways with few devices."""

PATIENCE = 30
"""Drafts whose neighbours are all looked at without finding anything better."""

NEAR, NEARER = 1.5, 1.1
"""How much slower than the best a draft may be for its neighbours to be looked at, with few devices and with many."""


class HeteroScheduler(Scheduler):
    """Uneven groups in any order of devices, some of which may be left out.

    Seeds come from the other schedulers and from a recursion that counts messages and micro-batches in flight; the best
    of them in the simulator are changed step by step as long as that makes them faster. Where nothing fits, the
    backbone's weights are held as int8.
    """

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        try:
            return self._fastest(profile, cluster, job)
        except BadInput:
            smaller = quantised(profile)
            if smaller == profile:
                raise
        return replace(self._fastest(smaller, cluster, job), weights="int8")

    def _fastest(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        judge = Judge(profile, cluster, job, BUDGET)
        tried = sizes(job)
        near = NEAR if judge.count <= SUBSETS else NEARER
        seeds = [*judge.best(_others(judge, profile, cluster, job), near), *judge.best(_recursion(judge, tried), near)]
        if not seeds:
            raise BadInput(why_none(profile, cluster, job))
        chosen = _explored(judge, seeds, tried, near)
        few = judge.count <= SUBSETS and judge.found.layers <= LAYERS
        better = faster_plan(profile, cluster, job, judge.known[chosen], STEPS) if few else None
        return judge.plan(chosen) if better is None else replace(better, scheduler=NAME)


def _others(judge: Judge, profile: Profile, cluster: Cluster, job: Job) -> Iterator[Draft]:
    """What other schedulers plan."""
    for kind in OTHERS if judge.count <= MANY else OTHERS[:-1]:
        try:
            yield judge.of(kind().plan(profile, cluster, job))
        except BadInput:
            continue


def _recursion(judge: Judge, tried: Sequence[int]) -> list[Draft]:
    """The best drafts of the recursion, by a rough estimate."""
    if judge.count <= SUBSETS:
        tables = Tables(judge.found, judge.cluster, places(judge.found, PLACES))
        every = [all_sets(judge.kinds)]
        if judge.found.layers <= MEDIUM:
            return _promising(judge, tables, tried, every, range(judge.count, 0, -1), SLOWEST, 3)
        return _promising(judge, tables, tried, every, sorted({judge.count, 2, 1}, reverse=True), FEWER, 2)
    orders = _orders(judge)
    coarse = Tables(judge.found, judge.cluster, places(judge.found, PLACES // 2))
    first = _promising(judge, coarse, tried, [along(orders[0], max(tried))], [1], FEWER, 1)
    best = list(dict.fromkeys(draft.size for draft in first))[:3]
    fine = Tables(judge.found, judge.cluster, places(judge.found, PLACES))
    return [*first, *_promising(judge, fine, best, [along(order, max(best)) for order in orders], [1], FEWER, 2)]


def _promising(
    judge: Judge,
    tables: Tables,
    tried: Sequence[int],
    kinds: Sequence[Sets],
    limits: Sequence[int],
    slowest: Sequence[float],
    most: int,
) -> list[Draft]:
    """Drafts of the recursion for each size of micro-batches, each kind of sets and each limit of those in flight."""
    promising: list[Draft] = []
    for size in tried:
        whole = micro_batches(judge.job, size)
        deepest = min(judge.count, len(tables.cuts) - 1, whole)
        fitting = [limit for limit in limits if limit <= deepest]
        short = tables.is_short(size, deepest)
        drafts: list[Draft | None] = []
        for limit in fitting if short else fitting[:1]:
            for sets in kinds:
                for part in (0.0, 1.0) if judge.cluster.links and sets.order is None else (0.0,):
                    found = Recursion(tables, sets, size, whole, limit, slowest, part).best(most)
                    drafts += [judge.draft(size, len(groups), groups, ends) for groups, ends in found]
        promising += sorted(dict.fromkeys(draft for draft in drafts if draft is not None), key=judge.estimate)[:JUDGED]
    return sorted(promising, key=judge.estimate)


def _orders(judge: Judge) -> list[tuple[int, ...]]:
    """Orders of devices that are promising, the last stage's first."""
    devices = judge.cluster.devices
    every = range(len(devices))
    by_speed = sorted(every, key=lambda i: -devices[i].flops)
    by_memory = sorted(every, key=lambda i: -devices[i].memory_bytes)
    orders = [by_speed, by_memory, by_memory[::-1], [*reversed(every)]]
    return list(dict.fromkeys(map(tuple, orders)))


def _explored(judge: Judge, seeds: Sequence[tuple[float, Draft]], tried: Sequence[int], near: float) -> Draft:
    """The best draft that is found by small changes, each time of the best one that has not been changed yet."""
    numbers = count()
    waiting = [(seconds, next(numbers), draft) for seconds, draft in seeds]
    heapq.heapify(waiting)
    best, fastest = min(seeds, key=lambda seed: (float(f"{seed[0]:.9e}"), -seed[1].size))  # of equals, few passes
    seen = {draft for _, draft in seeds}
    patience = PATIENCE
    while waiting and patience and judge.left > 0:
        seconds, number, draft = heapq.heappop(waiting)
        patience -= 1
        for other in neighbours(judge, draft, tried):
            if judge.left <= 0:
                break
            found = judge.seconds(other, best * near)
            if found < best * near and other not in seen:
                seen.add(other)
                heapq.heappush(waiting, (found, next(numbers), other))
            if found < best * (1 - 1e-9):
                best, fastest, patience = found, other, PATIENCE
                heapq.heappush(waiting, (seconds, number, draft))
                break
    return fastest
