"""Plans: made by a scheduler, or read from a file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link, Profile
from pac_core.contracts.scheduler import Plan, Scheduler
from pac_core.errors import BadInput
from pac_core.files import read_json
from pac_core.machine import memory_bytes
from pac_core.registry import Registry

FAR, NEAR = Link(1e8, 1e-3), Link(1e10, 1e-4)
"""What links between machines, and within one, are taken to be where nobody has measured them."""

BESIDE = "backbone_dtype"
"""Field of ``plan.json`` that tells of the run and is no part of the plan."""


def plan(profile: Profile, cluster: Cluster, job: Job, scheduler: str, registry: Registry | None = None) -> Plan:
    """The plan that the scheduler registered as ``scheduler`` makes. Of a profile with int8 weights it is for these.

    Raises:
        UnknownPlugin: there is none of this name.
        BadInput: nothing fits.
    """
    made: Scheduler = (registry or Registry()).get("schedulers", scheduler)()
    found = made.plan(profile, cluster, job)
    return found if profile.weights == "native" else replace(found, weights=profile.weights)


def load_plan(path: Path) -> Plan:
    """The plan in a file that a run wrote.

    Raises:
        BadInput: there is no plan in it.
    """
    given = read_json(path, "the plan")
    fields = {k: v for k, v in given.items() if k != BESIDE} if isinstance(given, dict) else given
    return Plan.from_json(fields, str(path))


def read_plan(path: Path, devices: Sequence[str]) -> Plan:
    """As `load_plan`, for a run over certain devices.

    Raises:
        BadInput: there is no plan in the file, or it is for other devices than ``devices``.
    """
    found = load_plan(path)
    named = [device for stage in found.stages for device in stage.devices]
    if sorted(named) != sorted(devices):
        raise BadInput(
            f"{path}: a plan for other devices: it names {', '.join(named)}, and this run has {', '.join(devices)}; "
            "leave --plan out to make a new one"
        )
    return found


def device_names(count: int) -> list[str]:
    """Names of the devices of this machine, by rank."""
    node = platform.node() or "local"
    return [node] if count == 1 else [f"{node}/{rank}" for rank in range(count)]


def local_cluster(names: Sequence[str], threads: int) -> Cluster:
    """Processes of this machine, which are alike: only the ratios of their speeds count.

    Args:
        threads: compute threads of each.
    """
    memory = memory_bytes() // len(names)
    devices = tuple(DeviceProfile(name, 1e10 * threads, memory) for name in names)
    return Cluster(devices, default=NEAR)
