"""The leader's side of streaming slices to workers; see `pac_core.runtime.slices`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pac_core.backbones import CONFIG, find_file
from pac_core.contracts.backbone import PARTIAL, Backbone, Weight
from pac_core.contracts.message import Message, Work
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput, Refused, RunFailed, TransportError, TransportTimeout
from pac_core.runtime.slice_files import by_file, payload
from pac_core.runtime.slice_offer import AHEAD, ANSWER, DATA, FORMATS, GO, OFFER, PATIENCE, Offer, Offered, Part

GLANCE = 0.2  # seconds between looks at whether the worker has given up


@dataclass(frozen=True)
class Recipient:
    """A worker that is to have slices.

    Attributes:
        device: its name.
        slices: each as in `StagePlan.layers`; None for the whole model.
        memory: bytes that the run may take there; None for what is free.
    """

    device: str
    slices: Sequence[Mapping[str, tuple[int, int]] | None] = (None,)
    memory: int | None = None


def serve_slices(
    transport: Transport, model: str | Path, backbone: Backbone, recipients: Mapping[int, Recipient]
) -> dict[int, int]:
    """Give each worker its slices; they call `open_slices` meanwhile. Returns once all have opened theirs.

    Weights are read from the checkpoint as they are sent: this device holds a few pieces for each worker.

    Args:
        transport: connected to the workers.
        model: folder or hub id.
        backbone: as `pac_core.weights.describe` opens it with ``digests``, in the dtype of the run.
        recipients: workers by rank.

    Returns:
        Bytes of weights sent to each worker.

    Raises:
        BadInput: the model came from memory, or files of it are missing.
        Refused: a worker cannot hold or run its slices; nothing was sent to any.
        PeerLost, TransportError: a worker is gone.
        RunFailed: a worker could not write its slice, or what it read was not what was sent.
    """
    offers = {rank: make_offer(model, backbone, recipient) for rank, recipient in recipients.items()}
    answers = {rank: transport.irecv(rank, ANSWER) for rank in offers}
    for rank, offer in offers.items():
        transport.isend(rank, Message(OFFER, {}, {"offer": offer.to_tensor()}))
    lacking = _answers(transport, offers, answers)
    files = by_file(backbone.weights())
    with ThreadPoolExecutor(max(len(offers), 1)) as pool:
        sent = {rank: pool.submit(_stream, transport, rank, offers[rank], files, lacking[rank]) for rank in offers}
    return {rank: future.result() for rank, future in sent.items()}


def make_offer(model: str | Path, backbone: Backbone, recipient: Recipient) -> Offer:
    """What the leader tells one worker; arguments and errors as in `serve_slices`."""
    whole = backbone.weights()
    slices = tuple(_part(backbone, layers) for layers in recipient.slices)
    names = {weight.name for weight in whole}.union(*(part.needed for part in slices))
    if backbone.info.fingerprint.endswith(PARTIAL) or not names <= set(backbone.digests):
        raise BadInput(f"{model}: its files are not all on this device, which leads; copy or download all of them")
    config = find_file(model, CONFIG)
    if config is None:
        raise BadInput(f"{model}: no {CONFIG}; it was there before, copy or download it again")
    return Offer(
        str(model),
        recipient.device,
        str(backbone.info.dtype).removeprefix("torch."),
        backbone.info.weights,
        backbone.info.fingerprint,
        config.read_text(encoding="utf-8"),
        recipient.memory,
        slices,
        tuple(Offered(w.name, w.stored, FORMATS[w.dtype], w.shape, w.nbytes, w.layer) for w in whole),
        dict(backbone.digests),
    )


def _part(backbone: Backbone, given: Mapping[str, tuple[int, int]] | None) -> Part:
    layers = None if given is None else {stream: (first, last) for stream, (first, last) in given.items()}
    return Part(layers, {weight.name: weight.stored for weight in backbone.weights(layers)})


def _answers(
    transport: Transport, offers: Mapping[int, Offer], answers: Mapping[int, Work[Message]]
) -> dict[int, list[str]]:
    """Files that each worker lacks; all are told to go on, or to stop because one cannot."""
    headers = {rank: answer.wait(PATIENCE).header for rank, answer in answers.items()}
    refusals = [str(header["refused"]) for header in headers.values() if "refused" in header]
    for rank in offers:
        transport.isend(rank, Message(GO, {"stop": refusals[0]} if refusals else {}))
    if refusals:
        raise Refused(refusals[0])
    return {rank: _files_of(offers[rank], header.get("files")) for rank, header in headers.items()}


def _files_of(offer: Offer, asked: Any) -> list[str]:
    known = by_file(offer.slice_weights)
    if not isinstance(asked, list) or not all(name in known for name in asked):
        raise TransportError(f"device {offer.device} asks for files that are not of its slice")
    return asked


def _stream(
    transport: Transport, rank: int, offer: Offer, files: Mapping[str, Sequence[Weight]], lacking: Sequence[str]
) -> int:
    """Send the files that a worker lacks, and wait until it has opened its slice; returns the bytes."""
    end = transport.irecv(rank, ANSWER)
    sent, under_way = 0, deque[Work[None]]()
    for piece in chain.from_iterable(payload(files[name]) for name in lacking):
        if len(under_way) == AHEAD and not _accepted(under_way.popleft(), end):
            break
        under_way.append(transport.isend(rank, Message(DATA, {}, {"piece": piece})))
        sent += piece.numel()
    failed = end.wait(PATIENCE).header.get("failed")
    if failed is not None:
        raise RunFailed(f"device {offer.device}: {failed}")
    return sent


def _accepted(work: Work[None], end: Work[Message]) -> bool:
    """Wait for a send; False if the worker has given up before."""
    while not end.done():
        with suppress(TransportTimeout):
            work.wait(GLANCE)
            return True
    return False
