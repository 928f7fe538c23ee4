"""One device a stage, in the order of the cluster (Eco-FL)."""

from __future__ import annotations

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import Costs, costs
from pac_core.planning.memory import lack
from pac_core.planning.nearest import nearest_change
from pac_plugins.schedulers.parts import micro_batches, slices

FILLING = 4
"""Micro-batches for each stage where the job leaves their size open: the bubble is then at most a fifth."""


class PipelineScheduler(Scheduler):
    """A stage for each device, cut so that the slowest stage is as fast as memory lets it be.

    Where memory does not suffice for all micro-batches that 1F1B has in flight, as many are as it suffices for.
    """

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        devices = cluster.devices
        size = _size(cluster, job)
        found = costs(profile, job)
        if len(found.cuts) <= len(devices):
            raise BadInput(
                f"{found.layers} layers cannot be cut into {len(devices)} stages; use fewer devices, or more "
                "taps (adapter.tap_every)"
            )
        count = micro_batches(job, size)
        most = min(len(devices), count)
        for limit in range(most, 0, -1):
            ends = _best(found, cluster, size, limit)
            if ends is not None:
                stages = _stages(profile, cluster, size, ends)
                return Plan(stages, count, scheduler="pipeline", in_flight=None if limit == most else limit)
        name, missing = _what_is_missing(found, cluster, size)
        change = nearest_change(cluster, job, name, lambda other, work: _fits(found, other, work))
        raise BadInput(f"the model does not fit: {missing}; {change}")


def _size(cluster: Cluster, job: Job) -> int:
    """Rows of a micro-batch."""
    return min(job.micro_batch_size or max(job.batch_size // (FILLING * len(cluster.devices)), 1), job.batch_size)


def _fits(found: Costs, cluster: Cluster, job: Job) -> bool:
    return _best(found, cluster, _size(cluster, job), 1) is not None


def _stages(profile: Profile, cluster: Cluster, size: int, ends: list[int]) -> tuple[StagePlan, ...]:
    slots = profile.chain()
    return tuple(
        StagePlan(slices(slots[first:last]), (device.name,), (size,))
        for device, first, last in zip(cluster.devices, [0, *ends], ends)
    )


def _best(found: Costs, cluster: Cluster, size: int, limit: int | None) -> list[int] | None:
    """Where each stage ends in the chain so that the slowest takes the least time; None if no stages fit.

    A table over (stage, end): the best way to give the layers before ``end`` to the stages up to this one.

    Args:
        limit: most micro-batches in flight; None if memory does not count.
    """
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for stage, device in enumerate(cluster.devices):
        in_flight = min(len(cluster.devices) - stage, limit or 1)
        following: dict[int, tuple[float, list[int]]] = {}
        for start, (slowest, ends) in best.items():
            for end in (place for place in found.cuts if place > start):
                if limit is not None and found.bytes(start, end, size, in_flight) > device.memory_bytes:
                    break
                seconds = max(slowest, found.seconds(device, start, end, size).both)
                if end not in following or seconds < following[end][0]:
                    following[end] = (seconds, [*ends, end])
        best = following
    return best[found.layers][1] if found.layers in best else None


def _what_is_missing(found: Costs, cluster: Cluster, size: int) -> tuple[str, str]:
    """The device of the stage that lacks most, with one micro-batch in flight, if memory did not count; and what."""
    ends = _best(found, cluster, size, None) or []
    needed = [round(found.bytes(first, last, size, 1)) for first, last in zip([0, *ends], ends)]
    worst = max(range(len(needed)), key=lambda i: needed[i] - cluster.devices[i].memory_bytes)
    return cluster.devices[worst].name, lack(cluster.devices[worst], worst, needed[worst])
