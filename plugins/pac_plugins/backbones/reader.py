"""Reading a checkpoint: the tensors of a slice, the digests of all, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from pac_core.contracts.backbone import BackboneSource, Weight
from pac_core.errors import BadInput
from pac_core.int8 import Int8Matrix, int8_bytes
from pac_plugins.backbones.checkpoint import Checkpoint
from pac_plugins.backbones.family import Family, Ranges
from pac_plugins.backbones.fingerprint import in_threads, stream_digest, tensor_digest
from pac_plugins.backbones.int8_linear import put_in, quantised

HEAD = "lm_head.weight"
HEAD_BIAS = "final_logits_bias"

Head = tuple[nn.Module, Tensor | None]
"""Module with the weight (vocabulary, d) of the language-model head, and its bias."""


class Reader:
    """Reads a checkpoint's tensors for one source, and their digests.

    Args:
        checkpoint: where they are.
        source: what is asked for.
        family: how the model is built.
        config: its configuration.
        names: of all parameters of the bare, whole model.
        int8: those that are held as int8, and whether they are stored as (inputs, outputs).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: BackboneSource,
        family: Family,
        config: Any,
        names: Sequence[str],
        int8: Mapping[str, bool],
    ) -> None:
        self._checkpoint = checkpoint
        self._family = family
        self._config = config
        self._names = names
        self._int8 = int8
        self._quantising = Lock()
        self._cast = source.dtype
        self._told = source.digests
        self._hashes = source.fingerprint is None
        self._tied = bool(getattr(config, "tie_word_embeddings", False))
        self._head = checkpoint.stored_name([HEAD]) if family.head else None
        self.has_head = family.head and (self._head is not None or self._tied)
        self.dtype = source.dtype or self._target(self._stored(family.embedding))

    def fill(self, base: Any, ranges: Ranges) -> dict[str, str | None]:
        """Give ``base`` the weights of ``ranges``; returns the digests of all weights of the whole backbone, unless
        its fingerprint is known."""
        held = set(self._family.needed(self._names, self._config, ranges))
        wanted = self._family.ranges(self._config) if self._hashes else ranges
        names = list(self._family.needed(self._names, self._config, wanted))
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        results = in_threads(partial(self._one, held=held, shapes=shapes), names)
        read = {name: tensor for name, (tensor, _) in zip(names, results)}
        tensors = {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}
        base.load_state_dict(tensors, strict=False, assign=True)
        put_in(base, {name: matrix for name, matrix in read.items() if isinstance(matrix, Int8Matrix)})
        return {name: digest for name, (_, digest) in zip(names, results)}

    def head(self, base: Any, ranges: Ranges) -> Head | None:
        """The language-model head where ``ranges`` reaches the last layer, its weight shared if it is tied."""
        if not self._reaches_head(ranges):
            return None
        embedding = base.get_submodule(self._family.embedding.rpartition(".")[0])
        return self._head_module(embedding), self._head_bias()

    def head_digests(self, head: Head | None) -> dict[str, str]:
        """The digests of the language-model head's weights, held or not, as far as they are known."""
        if not self.has_head or not self._hashes:
            return {}
        if head is not None:
            return head_digests(head)
        found = {name: self._digest(name) for name in self._head_names()}
        return {name: digest for name, digest in found.items() if digest is not None}

    def weights(self, ranges: Ranges) -> tuple[Weight, ...]:
        """The stored tensors that ``ranges`` need, each once."""
        names = [*self._family.needed(self._names, self._config, ranges)]
        names += self._head_names() if self._reaches_head(ranges) else []
        stored: dict[str, str] = {}
        for name in names:
            stored.setdefault(self._stored(name), name)
        return tuple(self._weight(name, key) for key, name in stored.items())

    def _weight(self, name: str, stored: str) -> Weight:
        entry = self._checkpoint.entry(stored)
        nbytes = torch.Size(entry.shape).numel() * self._target(stored).itemsize
        if name in self._int8:
            outputs, inputs = reversed(entry.shape) if self._int8[name] else entry.shape
            nbytes = int8_bytes(outputs, inputs)
        file, layer = self._checkpoint.file(stored), self._family.layer_of(name)
        return Weight(name, stored, file, entry.start, entry.dtype, entry.shape, nbytes, layer)

    def _reaches_head(self, ranges: Ranges) -> bool:
        stream = list(self._family.streams)[-1]
        return self.has_head and ranges.get(stream, (0, 0))[1] == self._family.ranges(self._config)[stream][1]

    def _head_names(self) -> list[str]:
        return [HEAD] if self._checkpoint.stored_name([HEAD_BIAS]) is None else [HEAD, HEAD_BIAS]

    def _head_module(self, embedding: Any) -> nn.Module:
        if self._head is None and embedding.weight is not None:
            return embedding
        weight = self._read(self._stored(HEAD))
        same = self._tied and embedding.weight is not None and torch.equal(weight, embedding.weight)
        return embedding if same else _linear(weight)

    def _head_bias(self) -> Tensor | None:
        stored = self._checkpoint.stored_name([HEAD_BIAS])
        return None if stored is None else self._read(stored)

    def _one(
        self, name: str, *, held: set[str], shapes: dict[str, tuple[int, ...]]
    ) -> tuple[Tensor | Int8Matrix | None, str | None]:
        if name not in held:
            return None, self._digest(name)
        if name not in self._int8:
            return self._whole(name, shapes[name])
        with self._quantising:  # one matrix at a time is in full precision, however many threads read
            return self._as_int8(name, shapes[name])

    def _as_int8(self, name: str, shape: tuple[int, ...]) -> tuple[Int8Matrix, str | None]:
        tensor, digest = self._whole(name, shape)
        return quantised(tensor, self._int8[name]), digest

    def _whole(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, str | None]:
        stored = self._stored(name)
        tensor = self._read(stored)
        if tuple(tensor.shape) != shape:
            raise BadInput(
                f"{self._checkpoint.path}: tensor {stored} of {self._checkpoint.file_name(stored)} is "
                f"{tuple(tensor.shape)}, but config.json asks for {shape}; they belong to different models"
            )
        return tensor, tensor_digest(tensor) if self._hashes else None

    def _digest(self, name: str) -> str | None:
        """The digest of a weight that is not held: told, or read piece by piece where its file is here."""
        if self._told is not None:
            return self._told.get(name)
        stored = self._stored(name)
        if not self._checkpoint.on_disk(stored):
            return None
        entry = self._checkpoint.entry(stored)
        return stream_digest(self._checkpoint.chunks(stored), entry.dtype, entry.shape, self._target(stored))

    def _stored(self, name: str) -> str:
        stored = self._checkpoint.stored_name(self._aliases(name))
        if stored is None:
            raise BadInput(
                f"{self._checkpoint.path}: the checkpoint has no tensor {name}, which config.json asks for; "
                "it is not whole, or belongs to another model"
            )
        return stored

    def _aliases(self, name: str) -> Iterator[str]:
        """Names under which a weight may be stored."""
        yield name
        embedding = self._family.embedding
        if self._tied and name in (embedding, HEAD):
            yield from (embedding, *self._family.tied, HEAD)

    def _target(self, stored: str) -> torch.dtype:
        dtype = self._checkpoint.entry(stored).dtype
        return self._cast if self._cast is not None and dtype.is_floating_point else dtype

    def _read(self, stored: str) -> Tensor:
        return self._checkpoint.read(stored, self._target(stored))


def head_digests(head: Head | None) -> dict[str, str]:
    """The digests of a head that is held."""
    if head is None:
        return {}
    module, bias = head
    found = {HEAD: tensor_digest(module.weight)}
    return found if bias is None else {**found, HEAD_BIAS: tensor_digest(bias)}


def _linear(weight: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
