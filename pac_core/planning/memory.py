"""How much memory a stage takes on a device; schedulers and their tests go by it."""

from __future__ import annotations

from collections.abc import Mapping

from pac_core.contracts.cluster import DeviceProfile, Job, Profile
from pac_core.contracts.scheduler import StagePlan
from pac_core.planning.cost import costs, places


def stage_bytes(profile: Profile, layers: Mapping[str, tuple[int, int]], job: Job, rows: int, in_flight: int) -> int:
    """Bytes that a stage takes on one device: weights, what training the side network adds, and the activations of the
    micro-batches in flight, as long as the longest sample.

    Args:
        layers: its slices, as in `StagePlan`.
        rows: rows of a micro-batch that the device works on.
        in_flight: micro-batches that have gone forward and not yet backward.
    """
    first, last = places(profile, StagePlan(layers, ("it",), (rows,)))
    return round(costs(profile, job).bytes(first, last, rows, in_flight))


def lack(device: DeviceProfile, stage: int, needed: int) -> str:
    """For errors: what ``device`` lacks for stage ``stage`` (from 0), which takes ``needed`` bytes."""
    missing = needed - device.memory_bytes
    return (
        f"device {device.name}, stage {stage + 1}: {needed:,} bytes are needed and {device.memory_bytes:,} there are, "
        f"{missing:,} are missing"
    )
