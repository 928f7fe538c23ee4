"""What leader and worker say to each other about a slice; see `pac_core.runtime.slices`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from pac_core.contracts.formats import WeightFormat
from pac_core.contracts.message import Message, Tag
from pac_core.errors import TransportError
from pac_core.files import DTYPES

OFFER = Tag("slice.offer")
ANSWER = Tag("slice.answer")
GO = Tag("slice.go")
DATA = Tag("slice.data")

AHEAD = 4
"""Pieces on their way to a worker at once."""

PATIENCE = 3600.0
"""Seconds that a device may take to read a large model from a slow disk; a device that is lost is noticed at once."""

STRICT = ConfigDict(extra="forbid", strict=True)

FORMATS = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Offered:
    """A stored tensor as the leader tells of it; see `Weight`.

    Attributes:
        format: its dtype by its name in safetensors.
    """

    __pydantic_config__ = STRICT

    name: str
    stored: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    layer: tuple[str, int] | None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * DTYPES[self.format].itemsize


@dataclass(frozen=True)
class Part:
    """One of the slices that a worker is to open.

    Attributes:
        layers: as in `BackboneSource`.
        needed: stored names of its weights, by name: a tied head may be stored as the embeddings.
    """

    __pydantic_config__ = STRICT

    layers: dict[str, tuple[int, int]] | None
    needed: dict[str, str]

    @property
    def name(self) -> str:
        """For errors and logs."""
        if self.layers is None:
            return "the whole model"
        return ", ".join(
            f"{stream} [{first}, {last})" if first < last else f"the end of {stream}"
            for stream, (first, last) in self.layers.items()
        )


@dataclass(frozen=True)
class Offer:
    """What the leader tells a worker about the model and its slices.

    Attributes:
        model: folder or hub id at the leader.
        device: the worker's name.
        dtype: name of the backbone's number format in torch.
        held_as: how the matrices of its layers are held; they are sent as they are in the checkpoint.
        fingerprint: of the whole backbone.
        config: text of its ``config.json``.
        memory: bytes that the run may take at the worker; None for what is free there.
        slices: what the worker is to open, each by itself.
        weights: of the whole model.
        digests: see `Backbone.digests`.
    """

    __pydantic_config__ = STRICT

    model: str
    device: str
    dtype: str
    held_as: WeightFormat
    fingerprint: str
    config: str
    memory: int | None
    slices: tuple[Part, ...]
    weights: tuple[Offered, ...]
    digests: dict[str, str]

    def __post_init__(self) -> None:
        unknown = {weight.format for weight in self.weights} - set(DTYPES)
        if unknown or self.dtype not in {str(dtype).removeprefix("torch.") for dtype in DTYPES.values()}:
            raise ValueError(f"number format {min(unknown, default=self.dtype)} is not known")
        if not re.fullmatch(r"[0-9a-f]{8,64}", self.fingerprint):
            raise ValueError("the fingerprint is not a whole backbone's")
        if min((size for weight in self.weights for size in weight.shape), default=0) < 0:
            raise ValueError("a shape is negative")
        stored = {weight.stored for weight in self.weights}
        if not all(stored.issuperset(part.needed.values()) for part in self.slices):
            raise ValueError("a weight of the slice is not the model's")

    def to_tensor(self) -> Tensor:
        """As JSON in a uint8 tensor."""
        return torch.frombuffer(bytearray(TypeAdapter(Offer).dump_json(self)), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, data: Tensor) -> Offer:
        """The offer that `to_tensor` packed.

        Raises:
            TransportError: it is none.
        """
        try:
            return TypeAdapter(cls).validate_json(data.numpy().tobytes())
        except ValidationError as error:
            raise TransportError(
                f"what the leader says of the model makes no sense: {error.errors()[0]['msg']}"
            ) from None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The backbone's number format."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def number_format(self) -> str:
        """What takes the weights' bytes, for errors."""
        return self.dtype if self.held_as == "native" else f"{self.held_as} and {self.dtype}"

    @property
    def slice_weights(self) -> tuple[Offered, ...]:
        """The weights of the slices, each once."""
        needed = {stored for part in self.slices for stored in part.needed.values()}
        return tuple(weight for weight in self.weights if weight.stored in needed)

    @property
    def nbytes(self) -> int:
        """What the slices' weights take in memory."""
        sizes = {weight.stored: weight.nbytes for weight in self.weights}
        return sum(sizes[stored] for part in self.slices for stored in set(part.needed.values()))

    @property
    def slice_name(self) -> str:
        """The slices, for errors."""
        return " and ".join(part.name for part in self.slices)


def tensor_of(message: Message, name: str) -> Tensor:
    """The bytes ``name`` of a message, a uint8 tensor.

    Raises:
        TransportError: the message has none.
    """
    found = message.tensors.get(name)
    if found is None or found.dtype != torch.uint8 or found.dim() != 1:
        raise TransportError(f"a {message.tag.direction} came without its {name}")
    return found
