"""One device does everything."""

from __future__ import annotations

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.memory import lack, stage_bytes
from pac_core.planning.nearest import nearest_change
from pac_plugins.schedulers.parts import micro_batches, rows_of, slices


class SingleScheduler(Scheduler):
    """The whole model on the fastest device that has room for it, the first of equals."""

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        size, layers = rows_of(job), slices(profile.chain())
        needed = stage_bytes(profile, layers, job, size, 1)
        fitting = [device for device in cluster.devices if device.memory_bytes >= needed]
        if not fitting:
            largest = max(cluster.devices, key=lambda device: device.memory_bytes)
            change = nearest_change(cluster, job, largest.name, lambda other, work: _fits(profile, other, work))
            raise BadInput(
                f"no device has room for the whole model: {lack(largest, 0, needed)}; {change}, or several stages"
            )
        chosen = max(fitting, key=lambda device: device.flops)
        return Plan((StagePlan(layers, (chosen.name,), (size,)),), micro_batches(job, size), scheduler="single")


def _fits(profile: Profile, cluster: Cluster, job: Job) -> bool:
    needed = stage_bytes(profile, slices(profile.chain()), job, rows_of(job), 1)
    return any(device.memory_bytes >= needed for device in cluster.devices)
