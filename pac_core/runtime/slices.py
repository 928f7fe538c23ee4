"""How a worker comes to its slices of the frozen backbone: from its own disk, or streamed from the leader.

    leader                                   worker
      offer: model, slices, digests ───────>   looks for a copy, then for room
      <──────────── files that it lacks, or why it cannot
      go, once all have answered ──────────>
      the files, piece by piece ───────────>   writes them, opens the slices, compares digests
      <──────────────────── done, or what failed

Nothing is sent before every worker has said that it can hold its slices. Most have one; for tasks with a language-model
head a device of a plan with stages has the head by itself too.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from pac_core.backbones import CONFIG, local_folder, source_config
from pac_core.contracts.backbone import Backbone, BackboneSource
from pac_core.contracts.message import Message
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput, PacError, Refused, RunFailed, TransportError
from pac_core.machine import free_disk, free_memory
from pac_core.registry import Registry
from pac_core.runtime.own_slices import OwnSlices, open_layers
from pac_core.runtime.slice_files import SliceFolder, payload_bytes, pieces
from pac_core.runtime.slice_leader import Recipient as Recipient
from pac_core.runtime.slice_leader import serve_slices as serve_slices
from pac_core.runtime.slice_offer import AHEAD, ANSWER, DATA, GO, OFFER, PATIENCE, Offer, tensor_of

log = logging.getLogger("pac")


@dataclass(frozen=True)
class Room:
    """What a device has left for its slices, in bytes; None where that is not known, and is not checked."""

    memory: int | None
    disk: int | None


def room_at(folder: Path) -> Room:
    """The room of this device for slices in main memory, with files in ``folder``."""
    return Room(free_memory(), free_disk(folder))


def open_slices(
    transport: Transport, leader: int, root: Path, registry: Registry, *, room: Room | None = None
) -> OwnSlices:
    """This device's slices of the leader's backbone, checked to be the same to the last bit.

    They come from the leader's path if that is on this device too, or from a copy below ``root``, where these hold the
    slices' weights as the leader has them; what the other layers of such a copy hold does not matter. Else the leader
    sends what is missing, which is kept below ``root`` for the next time.

    Args:
        transport: connected to the leader.
        leader: its rank.
        root: this device's cache folder; files go to ``root/models/FINGERPRINT``.
        registry: the plugins.
        room: for the slices; by default what this device has in main memory and at ``root``.

    Raises:
        BadInput: the slices do not fit here or cannot be run here; nothing was sent.
        Refused: another worker cannot hold its slices.
        RunFailed: the files cannot be written, or are damaged.
        PeerLost, TransportError: the leader is gone or does not keep to the protocol.
    """
    offer = Offer.from_tensor(tensor_of(transport.irecv(leader, OFFER).wait(PATIENCE), "offer"))
    worker = _Worker(offer, SliceFolder(root, offer), registry)
    try:
        found = worker.prepare(room or room_at(root))
    except PacError as error:
        _say(transport, leader, {"refused": str(error)})
        transport.irecv(leader, GO).wait(PATIENCE)  # all others have answered then, and the leader knows why
        raise
    lacking = [] if found is not None else worker.folder.missing()
    _say(transport, leader, {"files": lacking})
    stop = transport.irecv(leader, GO).wait(PATIENCE).header.get("stop")
    if stop is not None:
        raise Refused(str(stop))
    try:
        if found is None:
            found = worker.fetch(transport, leader, lacking)
    except TransportError:
        raise
    except PacError as error:
        _say(transport, leader, {"failed": str(error)})
        raise
    _say(transport, leader, {"done": True})
    return found


@dataclass(frozen=True)
class _Worker:
    """What a worker does with an offer.

    Attributes:
        offer: what it is told.
        folder: where files from the leader are kept.
        registry: the plugins.
    """

    offer: Offer
    folder: SliceFolder
    registry: Registry

    def prepare(self, room: Room) -> OwnSlices | None:
        """The slices from this device's own disk; None if they have to be streamed, and can be."""
        offer = self.offer
        self._check_memory(room.memory)
        self.registry.get("backbones", json.loads(offer.config)["model_type"])
        own = local_folder(offer.model)
        found = None if own is None else self._from_copy(own)
        if found is not None:
            return found
        missing = self.folder.missing()
        needed = self.folder.nbytes(missing)
        if room.disk is not None and needed > room.disk:
            way_out = "free some space, or let PAC_CACHE_DIR name a folder with more"
            raise self._too_small("disk", needed, f"{room.disk:,} are free", way_out)
        self._check_device()
        return None if missing else self._from_copy(self.folder.path)

    def fetch(self, transport: Transport, leader: int, lacking: Sequence[str]) -> OwnSlices:
        """Write the files that the leader sends, and open the slices.

        Raises:
            RunFailed: they cannot be written, or are damaged.
        """
        counts = {name: pieces(self.folder.files[name]) for name in lacking}
        stream = _receive(transport, leader, sum(counts.values()))
        for name, count in counts.items():
            size = payload_bytes(self.folder.files[name])
            self.folder.write(name, _exactly(size, islice(stream, count)))
        log.info("%s: %s of %s received", self.offer.device, self.offer.slice_name, self.offer.model)
        backbones = self._open(self.folder.path)
        wrong = self._differing(backbones)
        if wrong:
            self.folder.remove(wrong)
            raise RunFailed(
                f"{self.folder.path}: tensor {wrong[0]} is not what the leader has; it was damaged on the way or on "
                "this disk, or the leader's file has changed; the copy is removed, start again"
            )
        return self._own(self.folder.path, backbones)

    def _check_memory(self, free: int | None) -> None:
        needed, allowed = self.offer.nbytes, self.offer.memory
        if free is not None and needed > free:
            way_out = "give it fewer layers in the plan, or free some memory"
            raise self._too_small("memory", needed, f"{free:,} are free", way_out)
        if allowed is not None and needed > allowed:
            way_out = "give it fewer layers in the plan, or more memory in the cluster file"
            raise self._too_small("memory", needed, f"the run may take {allowed:,}", way_out)

    def _too_small(self, what: str, needed: int, there: str, way_out: str) -> BadInput:
        offer = self.offer
        return BadInput(
            f"device {offer.device} is too small for its slice, {offer.slice_name}: {needed:,} bytes of {what} are "
            f"needed for weights in {offer.number_format} and {there}; {way_out}"
        )

    def _check_device(self) -> None:
        """Make sure that the same weights give the same taps here as at the leader, which needs none of them.

        Raises:
            BadInput: they would not.
        """
        self.folder.prepare()
        if open_layers(self.folder.path, self.offer, self.registry, {}).info.fingerprint != self.offer.fingerprint:
            raise BadInput(
                f"device {self.offer.device} would run {self.offer.model} otherwise than the leader does; install the "
                "same versions of transformers and torch on both"
            )

    def _from_copy(self, copy: Path) -> OwnSlices | None:
        """The slices from a copy of the model on this disk; None if it is not the leader's model."""
        try:
            if settings(source_config(BackboneSource(copy))) != settings(json.loads(self.offer.config)):
                log.info("%s: %s is not used: its %s is not the leader's", self.offer.device, copy, CONFIG)
                return None
            backbones = self._open(copy)
        except BadInput as error:
            log.info("%s: %s is not used: %s", self.offer.device, copy, error)
            return None
        wrong = self._differing(backbones)
        if not wrong and all(backbone.info.fingerprint == self.offer.fingerprint for backbone in backbones):
            log.info("%s: %s comes from %s", self.offer.device, self.offer.slice_name, copy)
            return self._own(copy, backbones)
        log.info("%s: %s is not used: its weights are not the leader's", self.offer.device, copy)
        for backbone in backbones:
            backbone.release(keep_head=False)
        if copy == self.folder.path:
            self.folder.remove(wrong)
        return None

    def _open(self, path: Path) -> list[Backbone]:
        return [open_layers(path, self.offer, self.registry, part.layers) for part in self.offer.slices]

    def _own(self, path: Path, backbones: Sequence[Backbone]) -> OwnSlices:
        has_all = path != self.folder.path or None in [part.layers for part in self.offer.slices]
        return OwnSlices(path, self.offer, self.registry, has_all, backbones)

    def _differing(self, backbones: Sequence[Backbone]) -> list[str]:
        """Stored names of the slices' weights that are not the leader's."""
        told, found = self.offer.digests, list[str]()
        for part, backbone in zip(self.offer.slices, backbones, strict=True):
            own = backbone.digests
            found += [stored for name, stored in part.needed.items() if own.get(name) != told.get(name)]
        return found


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what only tells where it came from. Fingerprints leave out more: what heads read."""
    return {key: value for key, value in config.items() if key != "transformers_version" and not key.startswith("_")}


def _exactly(size: int, stream: Iterator[Tensor]) -> Iterator[Tensor]:
    """The pieces of a file, which must be ``size`` bytes together."""
    for piece in stream:
        size -= piece.numel()
        yield piece
    if size:
        raise TransportError("the leader sent a file of another size than it had said")


def _receive(transport: Transport, leader: int, count: int) -> Iterator[Tensor]:
    """Pieces from the leader, with receives posted ahead."""
    posted = deque(transport.irecv(leader, DATA) for _ in range(min(AHEAD, count)))
    for number in range(count):
        message = posted.popleft().wait(PATIENCE)
        if number + AHEAD < count:
            posted.append(transport.irecv(leader, DATA))
        yield tensor_of(message, "piece")


def _say(transport: Transport, leader: int, header: Mapping[str, Any]) -> None:
    transport.isend(leader, Message(ANSWER, header)).wait()
