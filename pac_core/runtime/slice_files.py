"""A slice of a checkpoint on a worker's disk: a folder like any sharded checkpoint's, with the files of its own layers.

The index names the files of the whole model, so another slice, or all of it, can be added to the same folder later.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pac_core.backbones import CONFIG
from pac_core.contracts.backbone import Weight
from pac_core.errors import RunFailed
from pac_core.files import write_atomically, write_json
from pac_core.runtime.slice_offer import Offer, Offered

INDEX = "model.safetensors.index.json"
PIECE = 1 << 20
"""Bytes of a file that are sent, and held in memory, at once."""

STALE_SECONDS = 86400.0
"""After so long, a file that nobody finished belongs to a process that was killed."""


class Placed(Protocol):
    """A weight that has a file: `Weight` or `Offered`."""

    @property
    def stored(self) -> str: ...

    @property
    def layer(self) -> tuple[str, int] | None: ...


P = TypeVar("P", bound=Placed)


def by_file(weights: Iterable[P]) -> dict[str, list[P]]:
    """Weights by the file that holds them on a worker: one for each layer, and one for each other tensor."""
    files: dict[str, list[P]] = {}
    for weight in weights:
        part = weight.stored if weight.layer is None else f"{weight.layer[0]}-{weight.layer[1]:04d}"
        files.setdefault(re.sub(r"[^A-Za-z0-9._-]", "_", part).lstrip(".") + ".safetensors", []).append(weight)
    return files


def payload(weights: Iterable[Weight]) -> Iterator[Tensor]:
    """The bytes of weights one after another, read as they are asked for, as uint8 tensors of `PIECE` bytes but for the
    last.

    Raises:
        RunFailed: a file became shorter.
    """
    piece, filled = bytearray(PIECE), 0
    for weight in weights:
        with FileIO(weight.file) as file:
            file.seek(weight.start)
            left = weight.size
            while left:
                count = file.readinto(memoryview(piece)[filled : filled + left])
                if not count:
                    raise RunFailed(f"{weight.file}: became shorter while it was read; copy or download it again")
                left, filled = left - count, filled + count
                if filled == PIECE:
                    yield torch.frombuffer(piece, dtype=torch.uint8)
                    piece, filled = bytearray(PIECE), 0
    if filled:
        yield torch.frombuffer(piece, dtype=torch.uint8)[:filled]


def pieces(weights: Iterable[Offered]) -> int:
    """How many tensors `payload` makes of them."""
    return -(-payload_bytes(weights) // PIECE)


def payload_bytes(weights: Iterable[Offered]) -> int:
    """Size of the `payload`."""
    return sum(weight.size for weight in weights)


class SliceFolder:
    """The files of one model below ``root``; workers on one machine may share them.

    Attributes:
        path: the folder; a checkpoint that the backbone plugins read.
        offer: what is to be in it.
    """

    def __init__(self, root: Path, offer: Offer) -> None:
        # checkpoints of equal weights may name and store them otherwise
        same = json.dumps([offer.config, [vars(weight) for weight in offer.weights], offer.digests], sort_keys=True)
        which = hashlib.blake2b(same.encode(), digest_size=8).hexdigest()
        self.path = root / "models" / offer.fingerprint / which
        self.offer = offer
        self.files: Mapping[str, list[Offered]] = by_file(offer.slice_weights)

    def missing(self) -> list[str]:
        """Files of the slice that are not here."""
        return [name for name, weights in self.files.items() if not self._whole(name, weights)]

    def nbytes(self, names: Iterable[str]) -> int:
        """Bytes of files on disk."""
        return sum(len(_header(self.files[name])) + payload_bytes(self.files[name]) for name in names)

    def prepare(self) -> None:
        """Write what belongs to the model as a whole, and clean up after processes that were killed.

        Raises:
            RunFailed: the folder cannot be written.
        """
        index = {weight.stored: name for name, weights in by_file(self.offer.weights).items() for weight in weights}
        write_atomically(self.path / CONFIG, lambda place: _write_text(place, self.offer.config))
        write_json(self.path / INDEX, {"metadata": {}, "weight_map": index})
        for left in self.path.glob(".*"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()

    def write(self, name: str, data: Iterator[Tensor]) -> None:
        """Write a file from its `payload`; a kill leaves nothing of it.

        Raises:
            RunFailed: it cannot be written.
        """
        weights = self.files[name]

        def write(place: Path) -> None:
            with FileIO(place, "wb") as file:
                _write_all(file, memoryview(_header(weights)))
                for piece in data:
                    _write_all(file, piece.numpy().data)

        write_atomically(self.path / name, write)

    def remove(self, stored: Iterable[str]) -> None:
        """Remove the files that hold these tensors."""
        damaged = set(stored)
        for name, weights in self.files.items():
            if damaged & {weight.stored for weight in weights}:
                (self.path / name).unlink(missing_ok=True)

    def _whole(self, name: str, weights: list[Offered]) -> bool:
        try:
            return (self.path / name).stat().st_size == len(_header(weights)) + payload_bytes(weights)
        except OSError:
            return False


def _header(weights: Iterable[Offered]) -> bytes:
    """What a safetensors file begins with."""
    fields, start = {}, 0
    for weight in weights:
        place = [start, start + weight.size]
        fields[weight.stored] = {"dtype": weight.format, "shape": list(weight.shape), "data_offsets": place}
        start += weight.size
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_text(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
