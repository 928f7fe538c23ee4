"""How the other devices of a run learn what to work on: the leader alone reads the data, and hands it out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from pac_core.batches import Dataset
from pac_core.cache import default_cache_root
from pac_core.config import RunConfig
from pac_core.contracts.cluster import DeviceProfile
from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.scheduler import Plan
from pac_core.contracts.transport import Transport
from pac_core.errors import RunFailed
from pac_core.examples import Example, Task
from pac_core.model import PacModel
from pac_core.registry import Registry
from pac_core.runtime.load import Loaded, OpenLayers, attach, open_backbone, opener
from pac_core.runtime.parts import Part, from_message, to_message
from pac_core.runtime.ranks import RankedPlan, ranked
from pac_core.runtime.slices import Recipient, open_slices, serve_slices
from pac_core.runtime.stage import Slices, head_slice

EXAMPLES_A_MESSAGE = 4096

PATIENCE = 86400.0
"""Seconds that a device waits for the leader, which may have much to read. A dead one is noticed at once."""


@dataclass(frozen=True, eq=False)
class Assigned:
    """What a run works on, and which device on what of it."""

    loaded: Loaded
    train: Dataset
    eval: Dataset


def hand_out(
    transport: Transport,
    loaded: Loaded,
    plan: Plan | None,
    shares: Sequence[float],
    machines: Sequence[DeviceProfile] | None = None,
) -> None:
    """Tell every other device what `take` returns there.

    Args:
        shares: of each device, by rank; see `pac_core.shares`.
        machines: all devices, by rank, where they are other machines: each is sent what it is to hold of the backbone
            and does not have. None for processes of this machine.

    Raises:
        PeerLost: a device is gone.
        Refused: a machine cannot hold its slice; no weights were sent.
        RunFailed: a machine could not write its slice.
    """
    model, data = loaded.model, (loaded.train, loaded.eval)
    described = {
        "fingerprint": model.info.fingerprint,
        "dtype": str(model.info.dtype).removeprefix("torch."),
        "weights": model.info.weights,
        "task": asdict(model.task),
        "plan": None if plan is None else plan.to_json(),
        "devices": [] if plan is None else list(plan.devices),
        "shares": list(shares),
        "streams": machines is not None,
        "messages": [-(-len(examples) // EXAMPLES_A_MESSAGE) for examples in data],
    }
    text = torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)
    messages = [Message(Tag("job"), {}, {"json": text})]
    for number, examples in enumerate(data):
        for i, start in enumerate(range(0, len(examples), EXAMPLES_A_MESSAGE)):
            part = Part(examples[start : start + EXAMPLES_A_MESSAGE], 0, {})
            messages.append(Message(Tag("examples", number, i), *to_message(part)))
    ranks = [rank for rank in range(transport.size) if rank != transport.rank]
    sent: list[Work[None]] = [
        transport.isend(rank, message, timeout=PATIENCE) for message in messages for rank in ranks
    ]
    for work in sent:
        work.wait(PATIENCE)
    if machines is not None:
        recipients = {
            rank: Recipient(machines[rank].name, slices_of(plan, rank, model), machines[rank].memory_bytes)
            for rank in ranks
        }
        serve_slices(transport, model.model_name, model.backbone, recipients)


def slices_of(plan: Plan | None, rank: int, model: PacModel) -> tuple[Slices | None, ...]:
    """What device ``rank`` opens of the backbone: all, or the layers of its stage, with the head if it is needed."""
    if plan is None:
        return (None,)
    layers = plan.stages[plan.place(rank)[0]].layers
    return (layers, head_slice(model)) if model.task.generates else (layers,)


def take(
    transport: Transport, config: RunConfig, registry: Registry, leader: int = 0
) -> tuple[Loaded, RankedPlan | None, list[float]]:
    """What the leader hands out, with this device's own backbone, side network and cache; the plan, if there is one:
    then the backbone holds no layers yet; and the shares of all devices.

    Raises:
        PeerLost: the leader is gone.
        BadInput: this device cannot open the model or the cache.
        RunFailed: its model is not the leader's.
    """
    job = json.loads(bytes(transport.irecv(leader, Tag("job")).wait(PATIENCE).tensors["json"].numpy()))
    task = Task(**{**job["task"], "labels": tuple(job["task"]["labels"])})
    train, evaluation = (_examples(transport, leader, number, count) for number, count in enumerate(job["messages"]))
    plan = None
    if job["plan"] is not None:
        plan = ranked(Plan.from_json(job["plan"], "the leader's plan"), job["devices"])
    held: Slices | None = None if plan is None else {}
    if job["streams"]:
        open_layers: OpenLayers = open_slices(transport, leader, default_cache_root(), registry)
        backbone = open_layers(held)
    else:
        backbone = open_backbone(config.model, getattr(torch, job["dtype"]), registry, held, weights=job["weights"])
        open_layers = opener(config.model, backbone.info, registry)
    if backbone.info.fingerprint != job["fingerprint"]:
        raise RunFailed(f"{config.model}: the weights here are not those that the leader has; copy the model again")
    loaded = Loaded(attach(_unpruned(config), backbone, task, registry), train, evaluation, open_layers, None)
    return loaded, plan, job["shares"]


def _unpruned(config: RunConfig) -> RunConfig:
    """``config`` for a device that is given the leader's weights: pruning would read all of the backbone in vain."""
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"init": "random"})})


def _examples(transport: Transport, leader: int, number: int, messages: int) -> list[Example]:
    coming = [transport.irecv(leader, Tag("examples", number, i)) for i in range(messages)]
    found: list[Example] = []
    for work in coming:
        message = work.wait(PATIENCE)
        found += from_message(message.header, message.tensors).examples
    return found
