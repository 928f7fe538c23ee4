"""The runs that the paper timed: systems with their settings, on Jetson Nanos, planned and simulated by our code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import costs
from pac_core.planning.icpp24.models import BLOCKS, Technique, job, profile
from pac_core.planning.make import plan
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.registry import Registry

LINK = Link(1e9, 5e-4)
"""1000 Mbit/s, as in the paper; the latency of its switch and of TCP on such a processor is assumed."""

DEVICES = 4
"""Of table 2: the figures agree with four."""

FIGURE_9A = 4
"""Samples of a mini-batch for each device in figure 9a: assumed."""

SCHEDULERS = ("pac", "pipeline", "data-parallel")
"""Of PAC, Eco-FL and the others."""

MORE = 1.02
"""Steps in which memory is enlarged to see which grouping comes nearest to fitting."""


@dataclass(frozen=True)
class Setting:
    """What the paper's runs have in common: Jetson Nanos, of which the first four numbers are fitted, and what is
    assumed of all systems alike.

    Attributes:
        forward_flops, backward_flops: operations a second in each pass.
        memory_bytes: that training may take.
        disk_bytes_per_s: of its memory card.
        layer_s: seconds of each pass of a layer beside its arithmetic: starting kernels.
        rows: of a micro-batch on a device.
        batch: samples of a mini-batch for each device in table 2; the batch of table 1.
    """

    forward_flops: float
    backward_flops: float
    memory_bytes: int
    disk_bytes_per_s: float
    layer_s: float = 5e-4
    rows: int = 4
    batch: int = 16

    def cluster(self, count: int) -> Cluster:
        """That many of them at a switch."""
        one = DeviceProfile(
            "nano",
            self.forward_flops,
            self.memory_bytes,
            self.backward_flops,
            self.layer_s,
            self.disk_bytes_per_s,
        )
        return Cluster(tuple(replace(one, name=f"nano{i}") for i in range(count)), default=LINK)


@dataclass(frozen=True)
class Run:
    """One of the paper's runs.

    Attributes:
        model, technique: what is trained, and how.
        system: ``standalone``, ``eddl``, ``eco-fl`` or ``pac``.
        devices: how many.
        batch: samples of a mini-batch for each device.
    """

    model: str
    technique: Technique
    system: str
    devices: int
    batch: int

    @property
    def profile(self) -> Profile:
        """What is trained."""
        return profile(self.model, self.technique)

    def plan(self, setting: Setting, registry: Registry) -> Plan:
        """How the system runs it.

        Raises:
            BadInput: it does not fit.
        """
        cluster = setting.cluster(self.devices)
        if self.system == "pac":
            groups = grouping(self.profile, setting, self.devices, registry)
            return cut(self.profile, cluster, self.job(setting.rows * max(groups)), groups)
        if self.system == "eco-fl":
            return plan(self.profile, cluster, self.job(setting.rows), "pipeline", registry)
        return plan(self.profile, cluster, self.job(setting.rows * self.devices), "data-parallel", registry)

    def job(self, micro_batch: int) -> Job:
        """The work of a mini-batch."""
        return job(self.batch * self.devices, micro_batch)


def of_row(model: str, row: str, setting: Setting) -> Run:
    """The run of a row of table 2."""
    technique, system = ("pac", "pac") if row == "pac" else row.split("/")
    return Run(model, technique, system, 1 if system == "standalone" else DEVICES, setting.batch)  # type: ignore[arg-type]


def timeline(
    run: Run, setting: Setting, registry: Registry, samples: int, epochs: int = 1, *, caches: bool = True
) -> Timeline | None:
    """What a run would take; None if it does not fit.

    Args:
        caches: whether PAC trains later epochs from the cache.
    """
    try:
        found = run.plan(setting, registry)
    except BadInput:
        return None
    work = Work(samples, epochs, caches=caches and run.system == "pac")
    cluster = setting.cluster(run.devices)
    return simulate(found, run.profile, cluster, run.job(found.micro_batch_size), work)


def grouping(model: Profile, setting: Setting, devices: int, registry: Registry) -> tuple[int, ...]:
    """Devices of each stage that `pac` chooses with one row a device in a micro-batch. As published it counts layers
    alone, not the table of embeddings. Where nothing fits, the groups of the plan that needs least memory more."""
    layers = replace(model, embedding_bytes={})
    try:
        found = plan(layers, setting.cluster(devices), job(devices, devices), "pac", registry)
    except BadInput:
        larger = replace(setting, memory_bytes=round(setting.memory_bytes * MORE))
        return grouping(model, larger, devices, registry)
    return tuple(len(stage.devices) for stage in found.stages)


def cut(model: Profile, cluster: Cluster, work: Job, groups: Sequence[int]) -> Plan:
    """The stages of these groups that run: as many micro-batches in flight as fit, then the slowest stage as fast as
    can be.

    Raises:
        BadInput: no stages fit.
    """
    found = costs(model, work)
    size = work.micro_batch_size or work.batch_size
    count = -(-work.batch_size // size)
    device, most = cluster.devices[0], min(len(groups), count)
    ways = [(*cut, found.layers) for cut in combinations(range(1, found.layers), len(groups) - 1)]

    def slowest(ends: Sequence[int]) -> float:
        stages = zip(groups, (0, *ends), ends)
        return max(found.seconds(device, first, last, size / group).both for group, first, last in stages)

    def fits(ends: Sequence[int], limit: int) -> bool:
        return all(
            found.bytes(first, last, -(-size // group), min(len(groups) - stage, limit)) <= device.memory_bytes
            for stage, (group, first, last) in enumerate(zip(groups, (0, *ends), ends))
        )

    for limit in range(most, 0, -1):
        fitting = [ends for ends in ways if fits(ends, limit)]
        if fitting:
            ends = min(fitting, key=slowest)
            return Plan(_stages(cluster, size, groups, ends), count, scheduler="pac", in_flight=limit)
    raise BadInput(f"groups of {list(groups)} devices do not have the memory")


def _stages(cluster: Cluster, size: int, groups: Sequence[int], ends: Sequence[int]) -> tuple[StagePlan, ...]:
    names = [device.name for device in cluster.devices]
    starts = accumulate(groups, initial=0)
    return tuple(
        StagePlan(
            {BLOCKS: (first, last)},
            tuple(names[start : start + group]),
            tuple(size // group + (i < size % group) for i in range(group)),
        )
        for start, group, first, last in zip(starts, groups, (0, *ends), ends)
    )
