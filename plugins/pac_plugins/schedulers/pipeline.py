"""One device a stage, in the order of the cluster (Eco-FL)."""

from __future__ import annotations

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.memory import lack, stage_bytes
from pac_plugins.schedulers.parts import cuts, layer_seconds, micro_batches, slices

FILLING = 4
"""Micro-batches for each stage where the job leaves their size open: the bubble is then at most a fifth."""


class PipelineScheduler(Scheduler):
    """A stage for each device, cut so that the slowest stage is as fast as memory lets it be."""

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        devices = cluster.devices
        size = min(job.micro_batch_size or max(job.batch_size // (FILLING * len(devices)), 1), job.batch_size)
        if len(cuts(profile)) <= len(devices):
            raise BadInput(
                f"{len(profile.chain())} layers cannot be cut into {len(devices)} stages; use fewer devices, or more "
                "taps (adapter.tap_every)"
            )
        ends = _best(profile, cluster, job, size, fit=True)
        if ends is None:
            raise BadInput(_what_is_missing(profile, cluster, job, size))
        slots = profile.chain()
        stages = tuple(
            StagePlan(slices(slots[first:last]), (device.name,), (size,))
            for device, first, last in zip(devices, [0, *ends], ends)
        )
        return Plan(stages, micro_batches(job, size), scheduler="pipeline")


def _best(profile: Profile, cluster: Cluster, job: Job, size: int, *, fit: bool) -> list[int] | None:
    """Where each stage ends in the chain so that the slowest takes the least time; None if no stages ``fit``.

    A table over (stage, end): the best way to give the layers before ``end`` to the stages up to this one.
    """
    slots, places = profile.chain(), cuts(profile)
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for stage, device in enumerate(cluster.devices):
        seconds = layer_seconds(profile, job, device.flops)
        following: dict[int, tuple[float, list[int]]] = {}
        for start, (slowest, ends) in best.items():
            for end in (place for place in places if place > start):
                if fit and _bytes(profile, job, slots[start:end], size, cluster, stage) > device.memory_bytes:
                    break
                found = max(slowest, sum(seconds[start:end]))
                if end not in following or found < following[end][0]:
                    following[end] = (found, [*ends, end])
        best = following
    return best[len(slots)][1] if len(slots) in best else None


def _bytes(profile: Profile, job: Job, slots: list[tuple[str, int]], size: int, cluster: Cluster, stage: int) -> int:
    return stage_bytes(profile, slices(slots), job, size, min(len(cluster.devices) - stage, micro_batches(job, size)))


def _what_is_missing(profile: Profile, cluster: Cluster, job: Job, size: int) -> str:
    """The stage that lacks most if memory did not count."""
    ends = _best(profile, cluster, job, size, fit=False) or []
    slots = profile.chain()
    needed = [
        _bytes(profile, job, slots[first:last], size, cluster, stage)
        for stage, (first, last) in enumerate(zip([0, *ends], ends))
    ]
    worst = max(range(len(needed)), key=lambda i: needed[i] - cluster.devices[i].memory_bytes)
    return f"the model does not fit: {lack(cluster.devices[worst], worst, needed[worst])}; use more devices"
