"""The planner of the paper (PAC, ICPP 2024), as published: equations 2 to 6."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import Costs, Seconds, all_reduce_s, costs, slice_of, transfer_s
from pac_core.planning.memory import lack
from pac_core.planning.nearest import nearest_change
from pac_core.planning.terms import Matrix, between
from pac_plugins.schedulers.parts import micro_batches, slices, split_rows

FILLING = 4
"""Micro-batches of a batch where the job leaves their size open, if there are rows enough for all devices."""

ENDLESS = 2**62


@dataclass(frozen=True)
class Balanced:
    """The best way to cut the chain into some number of stages, by equation 2.

    Attributes:
        ends: where each stage ends in the chain.
        groups: devices of each stage; together all of the cluster, in its order.
        slowest: seconds of the slowest stage for one micro-batch: W of the paper.
    """

    ends: tuple[int, ...]
    groups: tuple[int, ...]
    slowest: float


class PacScheduler(Scheduler):
    """All devices in the cluster's order, in groups that share micro-batches evenly.

    For each number of stages the plan whose slowest stage is fastest (equations 2 and 3), and of those the one whose
    mini-batch is shortest by equations 4 to 6. What messages take counts only in the latter, and activations of
    micro-batches in flight nowhere: as many are in flight as there is memory for.
    """

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        size = job.micro_batch_size or max(job.batch_size // FILLING, min(len(cluster.devices), job.batch_size))
        size = min(size, job.batch_size)
        found = costs(profile, job)
        count = micro_batches(job, size)
        candidates = list(balanced(found, cluster.devices, size))
        if not candidates:
            raise BadInput(_why_none(profile, found, cluster, job, size))
        best = min(candidates, key=lambda one: mini_batch_s(found, cluster, one, size, count))
        return _plan(profile, found, cluster, best, size, count)


def balanced(found: Costs, devices: Sequence[DeviceProfile], size: int) -> Iterator[Balanced]:
    """For each number of stages, from one on, the plan of least W; those numbers that memory rules out are left out.

    W(0->y, D_n, s) is a row of ``best[n]``, over y; a cut keeps the smallest q, and the smallest group, of equals.
    """
    devices = list(devices)
    count = len(devices)
    times = _group_times(found, devices, size)
    nothing = np.full((found.layers + 1, found.layers + 1), np.inf)
    best: list[Matrix] = [nothing[0], *(times.get((0, n), nothing)[0] for n in range(1, count + 1))]
    choices: list[dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]]] = []
    for stages in range(1, min(count, found.layers) + 1):
        if stages > 1:
            best, chosen = _one_more_stage(best, times, stages, count)
            choices.append(chosen)
        slowest = float(best[count][found.layers])
        if np.isfinite(slowest):
            yield Balanced(*_traced(choices, count, found.layers), slowest)


def _group_times(found: Costs, devices: Sequence[DeviceProfile], size: int) -> dict[tuple[int, int], Matrix]:
    """T of equation 3 for each group of neighbouring devices [i, j): a matrix over first and end of the slice;
    infinite where memory does not suffice, the slice is empty, or no stage may begin there."""
    kinds = [replace(device, name="") for device in devices]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    own = [numbers[kind] for kind in kinds]
    times: dict[tuple[int, int], Matrix] = {}
    for group in range(1, min(len(devices), size) + 1):
        alone = [_times_of(found, kind, group, size) for kind in numbers]
        for first in range(len(devices) - group + 1):
            members = sorted({*own[first : first + group]})
            times[first, first + group] = np.maximum.reduce([alone[number] for number in members])
    return times


def _times_of(found: Costs, device: DeviceProfile, group: int, size: int) -> Matrix:
    """Seconds of one device of a group that shares ``size`` rows evenly."""
    share, whole = size / group, -(-size // group)
    forward, backward = found.seconds_of_slices(device, share)
    fits = between(np.array(found.held_bytes) + whole * np.array(found.kept_bytes)) <= device.memory_bytes
    allowed = np.zeros_like(fits)
    allowed[np.ix_(found.cuts, found.cuts)] = True
    return np.where(np.triu(allowed & fits, 1), forward + backward, np.inf)


def _one_more_stage(
    best: list[Matrix], times: dict[tuple[int, int], Matrix], stages: int, count: int
) -> tuple[list[Matrix], dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """Equation 2: W with one stage more, and for each number of devices the q and m that give it, over y."""
    before = stages - 1  # so many layers at least
    following = [np.full_like(best[0], np.inf)] * (count + 1)
    chosen = {}
    for n in range(stages, count + 1):
        options = []
        for group in range(1, n - stages + 2):
            if (n - group, n) in times:
                ways = np.maximum(best[n - group][before:, None], times[n - group, n][before:])
                at = ways.argmin(axis=0)
                options.append((ways[at, np.arange(len(at))], at + before, group))
        values = np.stack([value for value, _, _ in options])
        pick = values.argmin(axis=0)
        places = np.arange(values.shape[1])
        following[n] = values[pick, places]
        chosen[n] = (
            np.stack([at for _, at, _ in options])[pick, places],
            np.array([group for _, _, group in options])[pick],
        )
    return following, chosen


def _traced(
    choices: Sequence[dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]]], count: int, end: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ends and groups of the stages, from the choices that were made from the second stage on."""
    ends, groups = [end], []
    for chosen in reversed(choices):
        at, group = chosen[count]
        groups.append(int(group[end]))
        count, end = count - int(group[end]), int(at[end])
        ends.append(end)
    return tuple(reversed(ends)), (count, *reversed(groups))


def mini_batch_s(found: Costs, cluster: Cluster, plan: Balanced, size: int, count: int) -> float:
    """L_b + L_e + L_n of equations 4 to 6: seconds of a mini-batch of ``count`` micro-batches of ``size`` rows."""
    groups = _members(cluster.devices, plan)
    starts = (0, *plan.ends)
    passes = [_slowest(found, members, first, last, size) for members, first, last in zip(groups, starts, plan.ends)]
    sent = [
        transfer_s(cluster.link(one[-1].name, other[0].name), size * found.crossings[end].forward)
        for one, other, end in zip(groups, groups[1:], plan.ends)
    ]
    returned = [
        transfer_s(cluster.link(one[-1].name, other[0].name), size * found.crossings[end].backward)
        for one, other, end in zip(groups, groups[1:], plan.ends)
    ]
    reduced = [
        all_reduce_s(cluster, [m.name for m in members], slice_of(found.gradient_bytes, first, last))
        for members, first, last in zip(groups, starts, plan.ends)
    ]
    begin = sum(one.forward + way for one, way in zip(passes, sent))
    end = max(
        reduced[i] + sum(one.backward + way for one, way in zip(passes[i:-1], returned[i:])) for i in range(len(passes))
    )
    return begin + count * passes[-1].both + end


def _slowest(found: Costs, members: Sequence[DeviceProfile], first: int, last: int, size: int) -> Seconds:
    share = size / len(members)
    return max((found.seconds(member, first, last, share) for member in members), key=lambda s: s.both)


def _needs(
    found: Costs, devices: Sequence[DeviceProfile], plan: Balanced, size: int, most: int
) -> Iterator[tuple[DeviceProfile, int, int]]:
    """Each device with its stage and the bytes that it takes with at most that many micro-batches in flight."""
    for stage, (members, first, last) in enumerate(zip(_members(devices, plan), (0, *plan.ends), plan.ends)):
        in_flight = min(len(plan.ends) - stage, most)
        for member, rows in zip(members, split_rows(size, [1.0] * len(members))):
            yield member, stage, round(found.bytes(first, last, rows, in_flight))


def _members(devices: Sequence[DeviceProfile], plan: Balanced) -> list[Sequence[DeviceProfile]]:
    groups, start = [], 0
    for group in plan.groups:
        groups.append(devices[start : start + group])
        start += group
    return groups


def _plan(profile: Profile, found: Costs, cluster: Cluster, chosen: Balanced, size: int, count: int) -> Plan:
    slots = profile.chain()
    stages = tuple(
        StagePlan(
            slices(slots[first:last]),
            tuple(member.name for member in members),
            split_rows(size, [1.0] * len(members)),
        )
        for members, first, last in zip(_members(cluster.devices, chosen), (0, *chosen.ends), chosen.ends)
    )
    most = min(len(stages), count)
    fitting = (
        limit
        for limit in range(most, 0, -1)
        if all(size <= device.memory_bytes for device, _, size in _needs(found, cluster.devices, chosen, size, limit))
    )
    limit = next(fitting)  # there is room for one in flight, by equation 3
    return Plan(stages, count, scheduler="pac", in_flight=None if limit == most else limit)


def _why_none(profile: Profile, found: Costs, cluster: Cluster, job: Job, size: int) -> str:
    """What is missing in the plan that lacks least, if memory did not count, and what would fit."""
    roomy = [replace(device, memory_bytes=ENDLESS) for device in cluster.devices]
    plans = list(balanced(found, roomy, size))
    if not plans:
        return (
            f"{found.layers} layers and micro-batches of {size} rows cannot be shared by {len(cluster.devices)} "
            "devices; use fewer devices, or give a larger --micro-batch-size"
        )

    def lacking(need: tuple[DeviceProfile, int, int]) -> int:
        return need[2] - need[0].memory_bytes

    def fits(other: Cluster, work: Job) -> bool:
        rows = min(work.micro_batch_size or size, work.batch_size)
        return any(balanced(costs(profile, work), other.devices, rows))

    worst = [max(_needs(found, cluster.devices, plan, size, 1), key=lacking) for plan in plans]
    most = min(worst, key=lacking)
    change = nearest_change(cluster, replace(job, micro_batch_size=size), most[0].name, fits)
    return f"the model does not fit: {lack(*most)}; {change}"
