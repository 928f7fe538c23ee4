"""A plan on devices that are not there: its profile from the model's configuration, its cluster from device cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pac_core.backbones import describe
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER
from pac_core.contracts.cluster import Cluster, Job, Link
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput
from pac_core.planning.cards import card
from pac_core.planning.make import load_plan
from pac_core.planning.profile import analytic_profile, quantised
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.registry import Registry

EVERY = "*"
"""Stands for all devices that are not named."""


@dataclass(frozen=True)
class WhatIf:
    """What is supposed.

    Attributes:
        cards: for each device ``NAME=CARD``, or ``CARD`` for all that are not named.
        link: between all of them.
        shared: whether they share one medium.
        tokens: of a sample.
        work: samples and epochs.
    """

    cards: Sequence[str]
    link: Link
    shared: bool
    tokens: int
    work: Work


def simulate_file(path: Path, model: str, adapter: AdapterConfig, what: WhatIf, registry: Registry) -> Timeline:
    """Simulate the plan in a file that a run wrote.

    Raises:
        BadInput: there is no plan in it, it is for another model, or a card is not known.
    """
    plan = load_plan(path)
    info = describe(model, registry)
    named = [stream.name for stream in info.streams if any(stream.name in stage.layers for stage in plan.stages)]
    if not named:
        raise BadInput(
            f"{path}: the plan runs no stream of {model}, which has {', '.join(s.name for s in info.streams)}"
        )
    target = named[-1]
    try:
        plan.check(info.streams[: [s.name for s in info.streams].index(target) + 1])
    except BadInput as error:
        raise BadInput(f"{path}: no plan for {model}: {error}") from None
    profile = analytic_profile(info, adapter, target, head=target == DECODER)
    if plan.weights == "int8":
        profile = quantised(profile)
    batch = plan.micro_batches * plan.micro_batch_size
    job = Job(batch, plan.micro_batch_size, what.tokens, what.tokens)
    return simulate(plan, profile, cluster_of(plan, what), job, what.work)


def cluster_of(plan: Plan, what: WhatIf) -> Cluster:
    """The devices of a plan, as their cards say they are.

    Raises:
        BadInput: a card is not known or its device is not in the plan, or a device has none, or several.
    """
    cards = _cards(what.cards)
    names = [device for stage in plan.stages for device in stage.devices]
    strange = sorted({*cards} - {*names, EVERY})
    if strange:
        raise BadInput(
            f"--card {strange[0]}={cards[strange[0]]}: the plan has no such device; it has {', '.join(names)}"
        )
    without = [name for name in names if name not in cards and EVERY not in cards]
    if without:
        raise BadInput(f"device '{without[0]}' has no card; give --card {without[0]}=NAME, or --card NAME for all")
    devices = tuple(card(cards.get(name) or cards[EVERY]).device(name) for name in names)
    return Cluster(devices, default=what.link, shared=what.shared)


def _cards(given: Sequence[str]) -> dict[str, str]:
    """Names of cards by device."""
    found: dict[str, str] = {}
    for text in given:
        name, kind = text.rpartition("=")[::2] if "=" in text else (EVERY, text)
        if name in found:
            whose = "all devices that are not named" if name == EVERY else f"'{name}'"
            raise BadInput(
                f"--card {text}: there is a card for {whose} already; give one, and --card DEVICE=NAME for others"
            )
        found[name] = kind
    return found
