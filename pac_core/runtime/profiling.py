"""Devices that measure themselves at the same time, and then the links between them, a pair after another.

All devices of a job call `take_part`, but the leader, which calls `lead`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AllowInfNan, Field, TypeAdapter, ValidationError

from pac_core.cache import default_cache_root
from pac_core.config import RunConfig
from pac_core.contracts.cluster import Link
from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Transport
from pac_core.errors import RunFailed
from pac_core.planning.measure import Measured, Request, measure
from pac_core.registry import Registry

PATIENCE = 900.0
"""Seconds that a device waits for the slowest other."""

PINGS = 9
LOADS = 3
LEAST, MOST = 1 << 18, 1 << 24
"""Bytes of messages that are timed."""

LOAD_SECONDS = 0.15
"""How long a message should take."""

REQUEST, ANSWER = Tag("profile-request"), Tag("profile-answer")
ASK, REPLY = Tag("profile-ask"), Tag("profile-reply")

Say = Callable[[str], None]
"""Told what is being done."""


@dataclass(frozen=True)
class Answer:
    """What a device has found.

    Attributes:
        measured: of itself.
        links: with devices of higher rank.
    """

    measured: Measured
    links: dict[int, Link]


def lead(
    transport: Transport, request: Request, folder: Path, names: Sequence[str], registry: Registry, say: Say
) -> list[Answer]:
    """Have all devices measured; returns what each has found, by rank.

    Args:
        folder: where this device's cache lies.
        names: of the devices, by rank, for errors.

    Raises:
        PeerLost, TransportTimeout: a device is gone, or does not answer.
        RunFailed: one has answered what cannot be.
    """
    for rank in range(1, transport.size):
        transport.isend(rank, Message(REQUEST, {"request": request.model_dump_json()})).wait(PATIENCE)
    say(f"measuring {_devices(names)} for {request.seconds:.0f} s and a little more")
    found = [_measured(transport, request, folder, registry, say)]
    for rank in range(1, transport.size):
        found.append(_read(transport.irecv(rank, ANSWER).wait(PATIENCE), rank, names))
    return found


def take_part(transport: Transport, config: RunConfig, registry: Registry) -> None:
    """Be measured as the leader asks.

    Raises:
        BadInput: the leader's model cannot be used here.
        PeerLost, TransportTimeout: as `lead`.
        RunFailed: what the leader asks is not a request.
    """
    header = transport.irecv(0, REQUEST).wait(PATIENCE).header
    try:
        request = Request.model_validate_json(str(header.get("request")))
    except ValidationError as error:
        raise RunFailed(f"the leader asks for what cannot be measured: {error.errors()[0]['msg']}") from None
    found = _measured(transport, request, cache_disk(config), registry, lambda text: None)
    links = [[rank, link.bits_per_second, link.latency_s] for rank, link in found.links.items()]
    answer = Message(ANSWER, {"measured": found.measured.to_text(), "links": links})
    transport.isend(0, answer).wait(PATIENCE)


def cache_disk(config: RunConfig) -> Path:
    """A folder on the disk where a run's cache would lie on this device."""
    return config.cache.dir or default_cache_root()


def _measured(transport: Transport, request: Request, folder: Path, registry: Registry, say: Say) -> Answer:
    transport.barrier(timeout=PATIENCE)  # devices of one machine share it, so that each is to be measured beside others
    measured = measure(request, folder, registry)
    transport.barrier(timeout=PATIENCE)
    say(f"measuring {transport.size * (transport.size - 1) // 2} links")
    return Answer(measured, measure_links(transport))


def measure_links(transport: Transport) -> dict[int, Link]:
    """Links of this device with those of higher rank. All devices call it."""
    found = {}
    for one, other in combinations(range(transport.size), 2):
        if transport.rank == one:
            found[other] = _ask(transport, other)
        elif transport.rank == other:
            _reply(transport, one)
        transport.barrier(timeout=PATIENCE)
    return found


def _ask(transport: Transport, rank: int) -> Link:
    """The link to a device that replies."""
    latency = statistics.median([_round_trip(transport, rank, 0) for _ in range(PINGS)][1:]) / 2
    size, took = LEAST, 0.0
    while size < MOST and took < LOAD_SECONDS:
        size = min(4 * size, MOST)
        took = _round_trip(transport, rank, size)
    seconds = statistics.median([took, *(_round_trip(transport, rank, size) for _ in range(LOADS - 1))])
    transport.isend(rank, Message(ASK, {"last": True})).wait(PATIENCE)
    return Link(8 * size / max(seconds - 2 * latency, 1e-6), latency)


def _round_trip(transport: Transport, rank: int, size: int) -> float:
    """Seconds until a message with so many bytes is answered by one without any."""
    reply = transport.irecv(rank, REPLY)
    message = Message(ASK, {"last": False}, {"load": torch.zeros(size, dtype=torch.uint8)} if size else {})
    began = time.perf_counter()
    transport.isend(rank, message)
    reply.wait(PATIENCE)
    return time.perf_counter() - began


def _reply(transport: Transport, rank: int) -> None:
    """Answer a device until it has asked its last. The next receive is posted before the answer goes, as stages do."""
    asked = transport.irecv(rank, ASK)
    while not asked.wait(PATIENCE).header.get("last"):
        asked = transport.irecv(rank, ASK)
        transport.isend(rank, Message(REPLY))


Finite = Annotated[float, AllowInfNan(False)]

_LINKS = TypeAdapter(list[tuple[int, Annotated[Finite, Field(gt=0)], Annotated[Finite, Field(ge=0)]]])


def _read(message: Message, rank: int, names: Sequence[str]) -> Answer:
    """The answer of the device ``rank`` of these."""
    measured = Measured.from_text(str(message.header.get("measured")), names[rank])
    try:
        links = _LINKS.validate_python(message.header.get("links"))
    except ValidationError as error:
        raise RunFailed(f"device '{names[rank]}' has found links that cannot be: {error.errors()[0]['msg']}") from None
    if sorted(other for other, _, _ in links) != [*range(rank + 1, len(names))]:
        raise RunFailed(f"device '{names[rank]}' has found links with other devices than those after it")
    return Answer(measured, {other: Link(bits, latency) for other, bits, latency in links})


def _devices(names: Sequence[str]) -> str:
    return f"device '{names[0]}'" if len(names) == 1 else f"{len(names)} devices at once"
