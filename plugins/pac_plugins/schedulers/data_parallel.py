"""Every device has the whole model, and part of the rows (EDDL)."""

from __future__ import annotations

from collections.abc import Iterator

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Profile
from pac_core.contracts.scheduler import Plan, Scheduler, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.memory import lack, stage_bytes
from pac_core.planning.nearest import nearest_change
from pac_plugins.schedulers.parts import micro_batches, rows_of, slices, split_rows


class DataParallelScheduler(Scheduler):
    """One stage with every device; each takes rows in proportion to its speed."""

    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        size, layers = rows_of(job), slices(profile.chain())
        rows = split_rows(size, [device.flops for device in cluster.devices])
        for device, needed in _needs(profile, cluster, job):
            if needed > device.memory_bytes:
                change = nearest_change(cluster, job, device.name, lambda other, work: _fits(profile, other, work))
                raise BadInput(f"the whole model does not fit: {lack(device, 0, needed)}; {change}, or several stages")
        names = tuple(device.name for device in cluster.devices)
        return Plan((StagePlan(layers, names, rows),), micro_batches(job, size), scheduler="data-parallel")


def _needs(profile: Profile, cluster: Cluster, job: Job) -> Iterator[tuple[DeviceProfile, int]]:
    """Each device with the bytes that it takes."""
    rows = split_rows(rows_of(job), [device.flops for device in cluster.devices])
    for device, own in zip(cluster.devices, rows):
        yield device, stage_bytes(profile, slices(profile.chain()), job, own, 1)


def _fits(profile: Profile, cluster: Cluster, job: Job) -> bool:
    if rows_of(job) < len(cluster.devices):
        return False
    return all(needed <= device.memory_bytes for device, needed in _needs(profile, cluster, job))
