"""Every device has the whole model, and part of the rows (EDDL)."""

from __future__ import annotations

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.memory import lack, stage_bytes
from pac_plugins.schedulers.parts import micro_batches, slices, split_rows


class DataParallelScheduler(Scheduler):
    """One stage with every device; each takes rows in proportion to its speed."""

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        size = min(job.micro_batch_size or job.batch_size, job.batch_size)
        layers = slices(profile.chain())
        rows = split_rows(size, [device.flops for device in cluster.devices])
        for device, own in zip(cluster.devices, rows):
            needed = stage_bytes(profile, layers, job, own, 1)
            if needed > device.memory_bytes:
                raise BadInput(f"the whole model does not fit: {lack(device, 0, needed)}; use several stages")
        names = tuple(device.name for device in cluster.devices)
        return Plan((StagePlan(layers, names, rows),), micro_batches(job, size), scheduler="data-parallel")
