"""What all bundled families share: the contract's methods, around the few steps in which families differ."""

from __future__ import annotations

import copy
import ctypes
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pac_core.contracts.backbone import (
    ENCODER,
    Backbone,
    BackboneInfo,
    BackboneSource,
    Boundary,
    LayerWeights,
    Stream,
    Weight,
)
from pac_core.errors import BadInput
from pac_plugins.backbones.family import Family
from pac_plugins.backbones.loading import hold

RunLayer = Callable[[int, nn.Module, Tensor], Tensor]
"""Runs layer (0-based index in the whole model, module) on hidden states (rows, tokens, d)."""


class TransformersBackbone(Backbone):
    """A backbone made of the modules of a transformers model; see `Backbone` for the contract.

    A family says where its parts are (``family``) and how to embed and to call a layer.
    """

    family: ClassVar[Family]

    def __init__(self, source: BackboneSource) -> None:
        held = hold(source, self.family)
        self._source = replace(source, model=None, fingerprint=held.fingerprint)
        self.config = held.config
        self._base = held.base
        self._ranges = held.ranges
        self._layers = held.layers
        self._kept = held.kept
        self._head = held.head
        self._has_head = held.has_head
        self._reader = held.reader
        self.digests = held.digests
        self._device = next(held.base.parameters(), torch.empty(0)).device
        self._refuse(held.config, held.dtype)
        self.info = BackboneInfo(
            model_type=held.config.model_type,
            streams=self._streams(),
            dtype=held.dtype,
            fingerprint=held.fingerprint,
            weights=source.weights,
            **self._facts(held.config),
        )

    # The steps of a family.

    @abstractmethod
    def _facts(self, config: Any) -> dict[str, Any]:
        """The fields of `BackboneInfo` that are read off the configuration."""

    @abstractmethod
    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        """b_0 (rows, tokens, d)."""

    @abstractmethod
    def _prepare(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> RunLayer:
        """What runs layers [first, last): masks and position tables are made here, once for all of them."""

    def _finish(self, stream: str, hidden: Tensor) -> Tensor:
        """The final norm."""
        return hidden

    def _scale_logits(self, hidden: Tensor) -> Tensor:
        """What the family does to the last hidden states before the head."""
        return hidden

    def _refuse(self, config: Any, dtype: torch.dtype) -> None:
        """Raise BadInput for variants of the family that this class does not run."""

    # The contract.

    def embed(
        self,
        stream: str,
        input_ids: Tensor,
        mask: Tensor,
        *,
        token_type_ids: Tensor | None = None,
        encoder: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        past: Any = None,
    ) -> Boundary:
        if self._held_range(stream)[0] != 0:
            raise RuntimeError(f"this slice starts at layer {self._held_range(stream)[0]} and holds no embeddings")
        positions = token_positions(mask)[:, -input_ids.shape[1] :]
        with torch.no_grad():
            hidden = self._embed(stream, input_ids, positions, mask, token_type_ids)
        boundary = {"hidden": hidden, "mask": mask, "positions": positions}
        if not self.info.stream(stream).cross:
            return boundary
        if encoder is None or encoder_mask is None:
            raise ValueError(f"stream '{stream}' attends to the encoder: pass encoder and encoder_mask")
        return {**boundary, "encoder": encoder, "encoder_mask": encoder_mask}

    def run(self, stream: str, first: int, last: int, boundary: Boundary, *, past: Any = None) -> Iterator[Boundary]:
        start, end = self._held_range(stream)
        if not start <= first <= last <= end:
            raise RuntimeError(f"layers [{first}, {last}) asked for, but this slice holds [{start}, {end})")
        return self._run(stream, first, last, boundary, past if self.info.stream(stream).causal else None)

    @torch.no_grad()
    def _run(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> Iterator[Boundary]:
        run_layer = self._prepare(stream, first, last, boundary, past)
        start = self._ranges[stream][0]
        final = self.info.stream(stream).layers - 1
        hidden = boundary["hidden"]
        for index in range(first, last):
            hidden = run_layer(index, self._layers[stream][index - start], hidden)
            if index == final:
                hidden = self._finish(stream, hidden)
            yield {**boundary, "hidden": hidden}

    def head(self, hidden: Tensor) -> Tensor:
        if self._head is None:
            raise BadInput(self._no_head())
        module, bias = self._head
        logits = linear(self._scale_logits(hidden), module.weight)
        return logits if bias is None else logits + bias

    def decoder_start(self) -> int | None:
        return self.config.decoder_start_token_id if self.info.is_encoder_decoder else None

    def layer_weights(self, stream: str, layer: int) -> LayerWeights:
        if self.released:
            raise RuntimeError("the backbone was released; load it again to read its layers")
        start, end = self._ranges.get(stream, (0, 0))
        if start <= layer < end and self.info.weights == "native":
            return self._weights(stream, self._layers[stream][layer - start])
        alone = type(self)(replace(self._source, layers={stream: (layer, layer + 1)}, weights="native"))
        return alone.layer_weights(stream, layer)

    def weights(self, layers: Mapping[str, tuple[int, int]] | None = None) -> tuple[Weight, ...]:
        if self._reader is None:
            raise BadInput(
                f"this {self.info.model_type} model came from memory and has no files, which other devices could be "
                "sent; save it with save_pretrained and give the folder"
            )
        held = None if layers is None else dict(layers)
        return self._reader.weights(self.family.asked_ranges(replace(self._source, layers=held), self.config))

    @abstractmethod
    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        """The matrices of one layer's module."""

    def new_past(self) -> Any:
        if not self.info.streams[-1].causal:
            raise BadInput(f"{self.info.model_type} is an encoder: it does not generate")
        return self._new_past()

    def _new_past(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def release(self, *, keep_head: bool) -> None:
        self._base = None
        self._layers = {}
        self._kept = {}
        if not keep_head:
            self._head = None
        _return_freed_memory()

    @property
    def released(self) -> bool:
        return self._base is None

    def to(self, device: torch.device | str) -> TransformersBackbone:
        self._device = torch.device(device)
        if self._head is not None:
            module, bias = self._head
            self._head = module.to(device), None if bias is None else bias.to(device)
        for module in (*self._kept.values(), *filter(None, [self._base])):
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self._device

    # Helpers.

    def _streams(self) -> tuple[Stream, ...]:
        layouts = self.family.streams
        paired = len(layouts) == 2
        return tuple(
            Stream(name, getattr(self.config, layout.count), causal=name != ENCODER, cross=paired and name != ENCODER)
            for name, layout in layouts.items()
        )

    def _held_range(self, stream: str) -> tuple[int, int]:
        if self.released:
            raise RuntimeError("the backbone was released; load it again to run its layers")
        if stream not in self._ranges:
            raise RuntimeError(f"this slice holds no layers of stream '{stream}'")
        return self._ranges[stream]

    def _local(self, stream: str, first: int, last: int) -> tuple[int, int]:
        start = self._ranges[stream][0]
        return first - start, last - start

    def _no_head(self) -> str:
        if not self._has_head:
            return (
                f"this {self.info.model_type} model has no language-model head; "
                "use it for classification or regression, or give a checkpoint with a head"
            )
        return "this slice does not hold the language-model head; the slice with the last layer does"


def token_positions(mask: Tensor) -> Tensor:
    """Position of each real token in its row, 0 for padding: (rows, tokens) bool to (rows, tokens) int64."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask, 0)


def _return_freed_memory() -> None:
    # glibc keeps freed tensors of a few MB for later, which would count as this process's memory
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def cache_of(past: Any, first: int, last: int) -> Any:
    """The self-attention cache of layers [first, last), for measuring: the layers before them may already be ahead."""
    cache = getattr(past, "self_attention_cache", past)
    if cache is None:
        return None
    view = copy.copy(cache)
    view.layers = cache.layers[first:last]
    return view
