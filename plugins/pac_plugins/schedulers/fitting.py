"""Whether any plan at all fits a cluster's memory, and what is missing where none does."""

from __future__ import annotations

import math

import numpy as np

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.planning.cost import Costs, costs
from pac_core.planning.memory import lack
from pac_core.planning.nearest import nearest_change
from pac_plugins.schedulers.hetero_seeds import SUBSETS, Recursion, Sets, all_sets, along
from pac_plugins.schedulers.hetero_tables import Tables, kinds
from pac_plugins.schedulers.rows import sizes


def why_none(profile: Profile, cluster: Cluster, job: Job) -> str:
    """For errors: the device, the stage and the bytes that are missing, and the nearest change that would fit."""
    name, missing = _missing(costs(profile, job), cluster, job)
    change = nearest_change(cluster, job, name, lambda other, work: any_fits(profile, other, work))
    return f"the model does not fit: {missing}; {change}"


def any_fits(profile: Profile, cluster: Cluster, job: Job) -> bool:
    """Whether there is a plan that fits with one micro-batch in flight. With many devices, one along an order of them:
    then there may be others."""
    found = costs(profile, job)
    tables = Tables(found, cluster, found.cuts)
    return any(_is_there(tables, size, job) for size in sizes(job))


def _is_there(tables: Tables, size: int, job: Job) -> bool:
    recursion = Recursion(tables, _sets(tables, size), size, -(-job.batch_size // size), 1, [math.inf])
    return any(bool(np.isfinite(values[1, :, 0]).any()) for values in recursion.values)


def _sets(tables: Tables, size: int) -> Sets:
    devices = tables.cluster.devices
    if len(devices) <= SUBSETS:
        return all_sets(kinds(tables.cluster))
    return along(sorted(range(len(devices)), key=lambda i: -devices[i].memory_bytes), size)


def _missing(found: Costs, cluster: Cluster, job: Job) -> tuple[str, str]:
    """The device that lacks most in the cut into one stage a device that lacks least, and what it lacks."""
    size, count = job.micro_batch_size or 1, min(len(cluster.devices), len(found.cuts) - 1)
    devices = sorted(cluster.devices, key=lambda device: -device.memory_bytes)[:count]
    places = len(found.cuts)
    needs = np.array(
        [[found.bytes(a, b, min(size, job.batch_size), 1) if a < b else np.inf for b in found.cuts] for a in found.cuts]
    )
    least = np.full(places, np.inf)
    least[-1] = -np.inf
    chosen = []
    for device in reversed(devices):
        lacks = np.maximum(needs - device.memory_bytes, least[None, :])
        chosen.append(lacks.argmin(axis=1))
        least = lacks.min(axis=1)
    place, stages = 0, []
    for stage, (device, ends) in enumerate(zip(devices, reversed(chosen))):
        end = int(ends[place])
        stages.append((round(needs[place, end]), stage, device))
        place = end
    needed, stage, device = max(stages, key=lambda one: one[0] - one[2].memory_bytes)
    return device.name, lack(device, stage, needed)
