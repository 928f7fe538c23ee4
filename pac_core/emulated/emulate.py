"""Making a run one of emulated devices: its plugins are wrapped, and its devices are those of cards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pac_core.adapter_files import CONFIG_NAME
from pac_core.config import RunConfig
from pac_core.contracts.adapter import AdapterConfig, SideNetwork
from pac_core.contracts.backbone import Backbone, BackboneSource
from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.emulated.backbone import EmulatedBackbone
from pac_core.emulated.clock import Clock
from pac_core.emulated.side import EmulatedSide
from pac_core.emulated.waits import Waits
from pac_core.errors import BadInput
from pac_core.planning.cards import card
from pac_core.planning.memory import lack, stage_bytes
from pac_core.planning.profile import analytic_profile, quantised
from pac_core.registry import Registry
from pac_core.runtime.load import Loaded
from pac_core.runtime.planned import job_of
from pac_core.shares import columns_each, evened

log = logging.getLogger("pac")

WARNING = (
    "devices are emulated: they wait as their cards predict, learn nothing, and no adapter is written; messages, cache "
    "and schedule are real"
)


def check_place(config: RunConfig) -> None:
    """Make sure that an emulated run does not write its times and checkpoint over those of an adapter.

    Raises:
        BadInput: there is an adapter in the output folder.
    """
    if config.emulate is not None and (config.output / CONFIG_NAME).exists():
        raise BadInput(
            f"{config.output} holds an adapter, whose metrics and checkpoint an emulated run would replace; give "
            "another --output"
        )


def emulating(registry: Registry, config: RunConfig) -> Registry:
    """``registry`` with backbones and adapters that wait as ``config.emulate`` says; as it is if that says nothing.

    Raises:
        BadInput: there is no such card, or the run is to be evaluated.
    """
    if config.emulate is None:
        return registry
    device, clock = card(config.emulate).device(config.emulate), Clock()
    if config.eval is not None:
        raise BadInput("--eval: emulated devices learn nothing that could be evaluated; leave --eval out, or --emulate")

    def backbones(factory: Callable[[BackboneSource], Backbone]) -> Callable[[BackboneSource], Backbone]:
        def build(source: BackboneSource) -> Backbone:
            described = factory(replace(source, layers={}, digests={}, fingerprint=None))
            target = described.info.streams[-1].name
            profile = analytic_profile(described.info, config.adapter, target, head=False)
            return EmulatedBackbone(described, Waits(device, profile, clock))

        return build

    def adapters(factory: Callable[..., SideNetwork]) -> Callable[..., SideNetwork]:
        def build(backbone: EmulatedBackbone, given: AdapterConfig, target: str) -> SideNetwork:
            real = factory(backbone, given.model_copy(update={"init": "random"}), target)
            return EmulatedSide(real, backbone.waits)

        return build

    return registry.wrapped({"backbones": backbones, "adapters": adapters})


def emulated(cluster: Cluster, name: str | None) -> Cluster:
    """``cluster`` with every device being one of the card ``name``; as it is if that is None."""
    if name is None:
        return cluster
    return replace(cluster, devices=tuple(card(name).device(device.name) for device in cluster.devices))


def check_emulated(config: RunConfig, loaded: Loaded, plan: Plan | None, cluster: Cluster) -> None:
    """If devices are emulated, say so, and make sure that they could hold what the plan, or without one all layers,
    takes.

    Raises:
        BadInput: a device could not, naming the bytes that it lacks.
    """
    if config.emulate is None:
        return
    log.warning(WARNING)
    model = loaded.model
    profile = analytic_profile(model.info, config.adapter, model.side.target, head=loaded.task.generates)
    check_memory(plan, profile, cluster, job_of(config, loaded))


def check_memory(plan: Plan | None, profile: Profile, cluster: Cluster, job: Job) -> None:
    """Make sure that the devices of a cluster can hold a plan, or, without one, all layers; errors as above."""
    devices = {device.name: device for device in cluster.devices}
    profile = profile if plan is None or plan.weights == profile.weights else quantised(profile)
    for number, stage in enumerate(_stages(plan, profile, cluster, job)):
        flying = 1 if plan is None else plan.most_in_flight(number)
        for name, rows in zip(stage.devices, stage.rows):
            needed = stage_bytes(profile, stage.layers, job, rows, flying)
            if needed > devices[name].memory_bytes:
                raise BadInput(f"{lack(devices[name], number, needed)}; plan more stages, or smaller micro-batches")


def _stages(plan: Plan | None, profile: Profile, cluster: Cluster, job: Job) -> Sequence[StagePlan]:
    if plan is not None:
        return plan.stages
    names = tuple(device.name for device in cluster.devices)
    owned = columns_each(evened([device.flops for device in cluster.devices]), job.batch_size).tolist()
    rows = tuple(max(min(own, job.micro_batch_size or own), 1) for own in owned)
    whole = {stream: (0, len(layers)) for stream, layers in profile.layers.items()}
    return [StagePlan(whole, names, rows)]
