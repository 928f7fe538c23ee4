"""Throughput by number of devices: a plan for each number, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pac_core.backbones import describe
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER
from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.errors import BadInput
from pac_core.planning.cards import card
from pac_core.planning.make import plan
from pac_core.planning.profile import analytic_profile
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.planning.what_if import WhatIf
from pac_core.registry import Registry

MOST = 1000
"""Devices that a number may be of."""


@dataclass(frozen=True)
class Scaled:
    """A number of devices, and what they would do.

    Attributes:
        devices: how many.
        scheduler: that planned.
        work: samples and epochs.
        timeline: None if nothing fits.
        why: what the scheduler said then.
    """

    devices: int
    scheduler: str
    work: Work
    timeline: Timeline | None = None
    why: str = ""

    @property
    def seconds(self) -> float:
        """Of the run; 0 if nothing fits."""
        return self.timeline.seconds if self.timeline else 0.0

    @property
    def first_rate(self) -> float:
        """Samples a second in the first pass over the samples; 0 if nothing fits."""
        if self.timeline is None:
            return 0.0
        epochs = 1 if self.work.caches else self.work.epochs
        return epochs * self.work.samples / self.timeline.phases[0].seconds

    @property
    def cached_rate(self) -> float:
        """Samples a second in epochs from the cache; 0 if there are none."""
        seconds = sum(phase.seconds for phase in self.timeline.phases if phase.name == "cached") if self.timeline else 0
        return self.work.cached_epochs * self.work.samples / seconds if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """It as plain data; rates are None where there is none."""
        found = self.timeline
        return {
            "devices": self.devices,
            "fits": found is not None and not found.out_of_memory,
            "why_not": self.why or None,
            "seconds": self.seconds if found else None,
            "first_samples_per_second": self.first_rate if found else None,
            "cached_samples_per_second": self.cached_rate or None,
            "groups": [len(stage.devices) for stage in found.plan.stages] if found else None,
        }


def scaled(
    profile: Profile, cluster: Cluster, job: Job, scheduler: str, work: Work, counts: Sequence[int], registry: Registry
) -> list[Scaled]:
    """What the first ``count`` devices of a cluster would do, for each of ``counts``.

    Raises:
        UnknownPlugin: there is no scheduler of this name.
        BadInput: a device that is to be slow is not in the cluster.
    """
    registry.get("schedulers", scheduler)
    work.slowness.slowed(cluster)
    return [_of(count, profile, cluster, job, scheduler, work, registry) for count in counts]


def _of(
    count: int, profile: Profile, cluster: Cluster, job: Job, scheduler: str, work: Work, registry: Registry
) -> Scaled:
    some = replace(cluster, devices=cluster.devices[:count])
    work = replace(work, slowness=work.slowness.among([device.name for device in some.devices]))
    try:
        made = plan(profile, some, job, scheduler, registry)
    except BadInput as error:
        return Scaled(count, scheduler, work, why=str(error))
    own = replace(job, micro_batch_size=made.micro_batch_size)
    return Scaled(count, scheduler, work, simulate(made, profile, some, own, work))


def scale_model(
    model: str,
    adapter: AdapterConfig,
    what: WhatIf,
    scheduler: str,
    batch_size: int,
    counts: Sequence[int],
    registry: Registry,
) -> list[Scaled]:
    """`scaled` of a model on devices of one card, named d0, d1 and so on, trained in all of its streams.

    Raises:
        BadInput: the card is not known, or there are several.
    """
    if len(what.cards) != 1 or "=" in what.cards[0]:
        raise BadInput("with --devices all devices are alike; give one --card NAME")
    kind = card(what.cards[0])
    cluster = Cluster(tuple(kind.device(f"d{i}") for i in range(max(counts))), default=what.link, shared=what.shared)
    info = describe(model, registry)
    target = info.streams[-1].name
    profile = analytic_profile(info, adapter, target, head=target == DECODER)
    job = Job(batch_size, None, what.tokens, what.tokens)
    return scaled(profile, cluster, job, scheduler, what.work, counts, registry)


def counts_of(text: str) -> list[int]:
    """Numbers of devices, ascending.

    Raises:
        BadInput: they are no numbers, or none from 1 to `MOST`.

    >>> counts_of("1,2,4-6")
    [1, 2, 4, 5, 6]
    """
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        sound = all(1 <= e[0] <= e[-1] <= MOST and len(e) <= 2 for e in ends)
    except ValueError:
        sound = False
    if not sound:
        raise BadInput(f"--devices {text}: give numbers from 1 to {MOST}, such as 8, 1-8 or 1,2,4")
    return sorted({n for e in ends for n in range(e[0], e[-1] + 1)})
