"""Stages of device groups for devices that differ, as the simulator finds them best."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler
from pac_core.errors import BadInput
from pac_plugins.schedulers.data_parallel import DataParallelScheduler
from pac_plugins.schedulers.hetero_drafts import Draft, Judge
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

BUDGET = 400_000
"""Actions and messages that are simulated for one plan."""

JUDGED = 80
"""Seeds that are simulated."""

PATIENCE = 12
"""Drafts whose neighbours are all looked at without finding anything better."""

NEAR = 1.1
"""How much slower than the best a draft may be for its neighbours to be looked at."""


class HeteroScheduler(Scheduler):
    """Uneven groups in any order of devices, some of which may be left out.

    Seeds come from the other schedulers and from a recursion that counts messages and micro-batches in flight; the best
    of them in the simulator are changed step by step as long as that makes them faster.
    """

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        judge = Judge(profile, cluster, job, BUDGET)
        tried = sizes(job)
        seeds = judge.best([*_others(judge, profile, cluster, job), *_recursion(judge, tried)])
        if not seeds:
            raise BadInput("nothing fits")
        return judge.plan(_explored(judge, seeds, tried))


def _others(judge: Judge, profile: Profile, cluster: Cluster, job: Job) -> Iterator[Draft]:
    """What other schedulers plan."""
    for kind in OTHERS:
        try:
            yield judge.of(kind().plan(profile, cluster, job))
        except BadInput:
            continue


def _recursion(judge: Judge, tried: Sequence[int]) -> list[Draft]:
    """The best drafts of the recursion, by its own estimate."""
    few = judge.count <= SUBSETS
    numbers = 1_000_000 if few else 100_000
    tables = Tables(judge.found, judge.cluster, places(judge.found, max(math.isqrt(numbers // judge.count), 25)))
    found: dict[Draft, float] = {}
    for size in tried:
        count = micro_batches(judge.job, size)
        most = min(judge.count, len(tables.cuts) - 1, count)
        limits = _limits(most, few) if tables.is_short(size, most) else [1]
        for sets in _sets(judge, size):
            for limit in limits:
                for _, groups, ends in Recursion(
                    tables, sets, size, count, limit, SLOWEST if few else FEWER
                ).best(6 if few else 2):
                    draft = judge.draft(size, len(groups), groups, ends)
                    if draft is not None:
                        found[draft] = judge.estimate(draft)
    return sorted(found, key=lambda draft: found[draft])[:JUDGED]


def _limits(most: int, few: bool) -> list[int]:
    return [limit for limit in range(most, 0, -1) if few or limit in (1, 2, 4)]


def _sets(judge: Judge, size: int) -> Iterator[Sets]:
    if judge.count <= SUBSETS:
        yield all_sets(judge.count)
        return
    for order in _orders(judge):
        yield along(order, size)


def _orders(judge: Judge) -> list[tuple[int, ...]]:
    """Orders of devices that are promising, the last stage's first."""
    devices = judge.cluster.devices
    every = range(len(devices))
    by_speed = sorted(every, key=lambda i: -devices[i].flops)
    by_memory = sorted(every, key=lambda i: -devices[i].memory_bytes)
    orders = [by_speed, by_memory, by_memory[::-1], [*reversed(every)]]
    return list(dict.fromkeys(map(tuple, orders)))


def _explored(judge: Judge, seeds: Sequence[tuple[float, Draft]], tried: Sequence[int]) -> Draft:
    """The best draft that is found by small changes, each time of the best one that has not been changed yet."""
    best, fastest = seeds[0]
    waiting = [(seconds, number, draft) for number, (seconds, draft) in enumerate(seeds)]
    seen = {draft for _, draft in seeds}
    patience = PATIENCE
    while waiting and patience and judge.left > 0:
        seconds, number, draft = heapq.heappop(waiting)
        patience -= 1
        for other in neighbours(judge, draft, tried):
            found = judge.seconds(other, best * NEAR)
            if found < best * NEAR and other not in seen:
                seen.add(other)
                heapq.heappush(waiting, (found, len(seen), other))
            if found < best * (1 - 1e-9):
                best, fastest, patience = found, other, PATIENCE
                heapq.heappush(waiting, (seconds, number, draft))
                break
    return fastest
