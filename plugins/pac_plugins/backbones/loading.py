"""Bringing a backbone into memory: a slice of a checkpoint, or a live model as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pac_core.backbones import find_file, refuse_unservable, source_config, source_name
from pac_core.contracts.backbone import BackboneSource
from pac_core.errors import BadInput
from pac_plugins.backbones.checkpoint import Checkpoint
from pac_plugins.backbones.family import Family, Ranges
from pac_plugins.backbones.fingerprint import combine, in_threads, tensor_digest
from pac_plugins.backbones.int8_linear import matrices
from pac_plugins.backbones.reader import HEAD_BIAS, Head, Reader, head_digests


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
        digests: see `Backbone.digests`.
        reader: what it was loaded with; None for a live model.
    """

    base: Any
    config: Any
    ranges: Ranges
    layers: dict[str, list[nn.Module]]
    kept: dict[str, Any]
    head: Head | None
    has_head: bool
    dtype: torch.dtype
    fingerprint: str
    digests: dict[str, str]
    reader: Reader | None


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
    if source.weights != "native":
        raise BadInput(f"{source.weights} weights are made while a model is loaded: give its folder, not one in memory")
    if source.dtype not in (None, dtype):
        raise BadInput(f"the model in memory is {dtype}, not {source.dtype}; convert it first with model.to(dtype)")
    model.requires_grad_(False).eval()
    ranges = family.ranges(config)
    head = _live_head(model, base, family)
    digests: dict[str, str] = {}
    if source.fingerprint is None:
        names = list(family.needed(_names(base), config, ranges))
        found = in_threads(lambda name: tensor_digest(base.get_parameter(name)), names)
        digests = dict(zip(names, found))
    fingerprint = source.fingerprint or combine(base, config, dtype, digests, family.config_keys)
    digests |= head_digests(head) if source.fingerprint is None else {}
    kept = {name: base.get_submodule(name) for name in family.kept}
    return Held(base, config, ranges, layers, kept, head, head is not None, dtype, fingerprint, digests, None)


def _live_head(model: Any, base: Any, family: Family) -> Head | None:
    if not family.head:
        return None
    module = getattr(model, "lm_head", None)
    if module is not None:
        return module, getattr(model, HEAD_BIAS, None)
    embedding = base.get_submodule(family.embedding.rpartition(".")[0])
    return (embedding, None) if model.config.tie_word_embeddings else None


def _names(base: nn.Module) -> list[str]:
    return [name for name, _ in base.named_parameters()]


def _load(source: BackboneSource, family: Family) -> Held:
    config = _read_config(source)
    ranges = family.asked_ranges(source, config)
    base = _empty_model(config)
    int8 = matrices(base, family) if source.weights == "int8" else {}
    reader = Reader(Checkpoint(source.path, family.prefixes), source, family, config, _names(base), int8)
    digests = reader.fill(base, ranges)
    family.rebuild(base, config)
    kept = {name: base.get_submodule(name) for name in family.kept}
    layers = _cut(base, family, ranges)
    head = reader.head(base, ranges)
    base.requires_grad_(False).eval()
    fingerprint = source.fingerprint or combine(
        base, config, reader.dtype, digests, family.config_keys, weights=source.weights
    )
    known = {name: digest for name, digest in digests.items() if digest is not None} | reader.head_digests(head)
    return Held(base, config, ranges, layers, kept, head, reader.has_head, reader.dtype, fingerprint, known, reader)


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
