"""Bringing a backbone into memory: a slice of a checkpoint, or a live model as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pac_core.backbones import find_file, refuse_unservable, source_config, source_name
from pac_core.contracts.backbone import BackboneSource
from pac_core.errors import BadInput
from pac_plugins.backbones.checkpoint import Checkpoint
from pac_plugins.backbones.family import Family, Ranges
from pac_plugins.backbones.fingerprint import combine, in_threads, stream_digest, tensor_digest

HEAD = "lm_head.weight"
HEAD_BIAS = "final_logits_bias"


@dataclass
class Held:
    """What a backbone holds.

    Attributes:
        base: the bare model; of a slice, only the modules that the slice needs have weights.
        config: configuration of the whole model.
        ranges: the layers held.
        layers: per stream the modules of those layers.
        kept: the modules that ``family.kept`` names.
        head: module with the weight (vocabulary, d) of the language-model head, and its bias; None where it is not held
            or does not exist.
        has_head: whether the model has such a head at all.
        dtype: dtype of the weights.
        fingerprint: see `fingerprint.combine`.
    """

    base: Any
    config: Any
    ranges: Ranges
    layers: dict[str, list[nn.Module]]
    kept: dict[str, Any]
    head: tuple[nn.Module, Tensor | None] | None
    has_head: bool
    dtype: torch.dtype
    fingerprint: str


def hold(source: BackboneSource, family: Family) -> Held:
    """Wrap ``source.model`` or load from ``source.path``.

    Raises:
        BadInput: it cannot be served; the text names file and reason.
    """
    refuse_unservable(source_config(source), source_name(source))
    return _wrap(source, family) if source.model is not None else _load(source, family)


def _wrap(source: BackboneSource, family: Family) -> Held:
    model = source.model
    base, config = model.base_model, model.config
    if source.layers is not None:
        raise BadInput("layers can only be chosen when a backbone is loaded from a path, not for a model in memory")
    try:
        layers = {name: list(base.get_submodule(layout.layers)) for name, layout in family.streams.items()}
        dtype = base.get_parameter(family.embedding).dtype
    except AttributeError as error:
        raise BadInput(f"{type(model).__name__} lacks a part of a {config.model_type} model: {error}") from error
    if source.dtype not in (None, dtype):
        raise BadInput(f"the model in memory is {dtype}, not {source.dtype}; convert it first with model.to(dtype)")
    model.requires_grad_(False).eval()
    ranges = family.ranges(config)
    names = list(family.needed(base, config, ranges))
    digests = in_threads(lambda name: tensor_digest(base.get_parameter(name)), names)
    fingerprint = combine(base, config, dtype, dict(zip(names, digests)), family.config_keys)
    head = _live_head(model, base, family)
    kept = {name: base.get_submodule(name) for name in family.kept}
    return Held(base, config, ranges, layers, kept, head, head is not None, dtype, fingerprint)


def _live_head(model: Any, base: Any, family: Family) -> tuple[nn.Module, Tensor | None] | None:
    if not family.head:
        return None
    module = getattr(model, "lm_head", None)
    if module is not None:
        return module, getattr(model, HEAD_BIAS, None)
    return (_embedding(base, family), None) if model.config.tie_word_embeddings else None


def _embedding(base: Any, family: Family) -> nn.Module:
    return base.get_submodule(family.embedding.rpartition(".")[0])


def _linear(weight: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _load(source: BackboneSource, family: Family) -> Held:
    config = _read_config(source)
    ranges = family.asked_ranges(source, config)
    base = _empty_model(config)
    reader = _Reader(Checkpoint(source.path, family.prefixes), source, family, config)
    digests = reader.fill(base, ranges)
    family.rebuild(base, config)
    kept = {name: base.get_submodule(name) for name in family.kept}
    layers = _cut(base, family, ranges)
    head = reader.head(base, ranges)
    base.requires_grad_(False).eval()
    fingerprint = source.fingerprint or combine(base, config, reader.dtype, digests, family.config_keys)
    return Held(base, config, ranges, layers, kept, head, reader.has_head, reader.dtype, fingerprint)


def _read_config(source: BackboneSource) -> Any:
    from transformers import AutoConfig

    file = find_file(source.path, "config.json")
    try:
        return AutoConfig.from_pretrained(file.parent)
    except Exception as error:  # transformers raises several kinds for fields it does not accept
        raise BadInput(f"{file}: transformers does not accept this configuration ({error})") from error


def _empty_model(config: Any) -> Any:
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)


def _cut(base: Any, family: Family, ranges: Ranges) -> dict[str, list[nn.Module]]:
    """Drop what was not loaded, and number the layers from 0, as a key-value cache counts them."""
    for module in base.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = None
    layers = {}
    for stream, layout in family.streams.items():
        first, last = ranges.get(stream, (0, 0))
        parent, _, attribute = layout.layers.rpartition(".")
        held = base.get_submodule(layout.layers)[first:last]
        setattr(base.get_submodule(parent), attribute, held)
        _renumber(held)
        if stream in ranges:
            layers[stream] = list(held)
    return layers


def _renumber(layers: Iterable[nn.Module]) -> None:
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index


class _Reader:
    """Reads a checkpoint's tensors for one source, and their digests."""

    def __init__(self, checkpoint: Checkpoint, source: BackboneSource, family: Family, config: Any) -> None:
        self._checkpoint = checkpoint
        self._family = family
        self._config = config
        self._cast = source.dtype
        self._hashes = source.fingerprint is None
        self._tied = bool(getattr(config, "tie_word_embeddings", False))
        self._head = checkpoint.stored_name([HEAD]) if family.head else None
        self.has_head = family.head and (self._head is not None or self._tied)
        self.dtype = self._target(self._stored(family.embedding))

    def fill(self, base: Any, ranges: Ranges) -> dict[str, str | None]:
        """Give ``base`` the weights of ``ranges``; returns the digests of all weights of the whole backbone, unless
        its fingerprint is known."""
        held = set(self._family.needed(base, self._config, ranges))
        wanted = self._family.ranges(self._config) if self._hashes else ranges
        names = list(self._family.needed(base, self._config, wanted))
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        results = in_threads(partial(self._one, held=held, shapes=shapes), names)
        tensors = {name: tensor for name, (tensor, _) in zip(names, results) if tensor is not None}
        base.load_state_dict(tensors, strict=False, assign=True)
        return {name: digest for name, (_, digest) in zip(names, results)}

    def head(self, base: Any, ranges: Ranges) -> tuple[nn.Module, Tensor | None] | None:
        """Weight and bias of the language-model head where ``ranges`` reaches the last layer, shared if it is tied."""
        stream = list(self._family.streams)[-1]
        if not self.has_head or ranges.get(stream, (0, 0))[1] != self._family.ranges(self._config)[stream][1]:
            return None
        return self._head_module(_embedding(base, self._family)), self._head_bias()

    def _head_module(self, embedding: Any) -> nn.Module:
        if self._head is None and embedding.weight is not None:
            return embedding
        weight = self._read(self._head or self._stored(self._family.embedding))
        same = self._tied and embedding.weight is not None and torch.equal(weight, embedding.weight)
        return embedding if same else _linear(weight)

    def _head_bias(self) -> Tensor | None:
        stored = self._checkpoint.stored_name([HEAD_BIAS])
        return None if stored is None else self._read(stored)

    def _one(
        self, name: str, *, held: set[str], shapes: dict[str, tuple[int, ...]]
    ) -> tuple[Tensor | None, str | None]:
        stored = self._stored(name)
        if name in held:
            tensor = self._read(stored)
            if tuple(tensor.shape) != shapes[name]:
                raise BadInput(
                    f"{self._checkpoint.path}: tensor {stored} of {self._checkpoint.file_name(stored)} is "
                    f"{tuple(tensor.shape)}, but config.json asks for {shapes[name]}; they belong to different models"
                )
            return tensor, tensor_digest(tensor) if self._hashes else None
        if not self._checkpoint.on_disk(stored):
            return None, None
        entry = self._checkpoint.entry(stored)
        return None, stream_digest(self._checkpoint.chunks(stored), entry.dtype, entry.shape, self._target(stored))

    def _stored(self, name: str) -> str:
        aliases = (*self._family.tied, HEAD) if name == self._family.embedding and self._tied else ()
        stored = self._checkpoint.stored_name([name, *aliases])
        if stored is None:
            raise BadInput(
                f"{self._checkpoint.path}: the checkpoint has no tensor {name}, which config.json asks for; "
                "it is not whole, or belongs to another model"
            )
        return stored

    def _target(self, stored: str) -> torch.dtype:
        dtype = self._checkpoint.entry(stored).dtype
        return self._cast if self._cast is not None and dtype.is_floating_point else dtype

    def _read(self, stored: str) -> Tensor:
        return self._checkpoint.read(stored).to(self._target(stored))
