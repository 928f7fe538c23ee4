"""The nearest change that would make a model fit, where no plan does: worked out by planning again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pac_core.contracts.cluster import Cluster, Job

STEP = 1 << 20
"""Bytes to which memory is worked out."""

MOST = 1 << 50

Fits = Callable[[Cluster, Job], bool]
"""Whether a scheduler has a plan for a cluster and a job."""


def nearest_change(cluster: Cluster, job: Job, name: str, fits: Fits) -> str:
    """What would fit, for errors: a smaller micro-batch, if the job gives its size, else the least memory more on the
    device ``name``, else more devices.

    Args:
        fits: is called some dozens of times.
    """
    size = _smaller(cluster, job, fits)
    if size is not None:
        return f"a micro-batch of {size} row{'s' if size > 1 else ''} would fit"
    more = _more(cluster, name, job, fits)
    return "use more devices" if more is None else f"{-(-more // STEP):,} MiB more on '{name}' would fit"


def _smaller(cluster: Cluster, job: Job, fits: Fits) -> int | None:
    """The first half, quarter, ... of the micro-batch asked for that fits."""
    size = job.micro_batch_size or 1
    while size > 1:
        size //= 2
        if fits(cluster, replace(job, micro_batch_size=size)):
            return size
    return None


def _more(cluster: Cluster, name: str, job: Job, fits: Fits) -> int | None:
    """Least bytes, in steps, that a device would have to have beside what it has; None if no memory is enough."""

    def enough(more: int) -> bool:
        devices = tuple(
            replace(device, memory_bytes=device.memory_bytes + more) if device.name == name else device
            for device in cluster.devices
        )
        return fits(replace(cluster, devices=devices), job)

    high = STEP
    while not enough(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > STEP:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
