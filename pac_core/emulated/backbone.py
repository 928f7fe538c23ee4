"""A frozen backbone that holds no weights: its layers take time, and give zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from pac_core.contracts.backbone import Backbone, Boundary, LayerWeights, Weight
from pac_core.emulated.waits import Waits

PREFIX = "emulated-"
"""Begins the fingerprint of an emulated backbone, so that no cache takes its entries for real ones."""


class EmulatedBackbone(Backbone):
    """Stands in for any slice of a backbone; tensors have the names, shapes and dtypes of the real ones.

    Args:
        described: the real backbone, which holds nothing.
        waits: for its layers.
    """

    def __init__(self, described: Backbone, waits: Waits) -> None:
        self.info = replace(described.info, fingerprint=PREFIX + described.info.fingerprint)
        self.config = described.config
        self.digests: Mapping[str, str] = {}
        self.waits = waits
        self._described = described
        self._released = False

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
        hidden = torch.zeros(*input_ids.shape, self.info.hidden_size, dtype=self.info.dtype)
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        boundary = {"hidden": hidden, "mask": mask, "positions": positions}
        if encoder is None or encoder_mask is None:
            return boundary
        return {**boundary, "encoder": encoder, "encoder_mask": encoder_mask}

    def run(self, stream: str, first: int, last: int, boundary: Boundary, *, past: Any = None) -> Iterator[Boundary]:
        lengths: list[int] = boundary["mask"].sum(1).tolist()
        sources: list[int] = boundary["encoder_mask"].sum(1).tolist() if "encoder_mask" in boundary else []
        for layer in range(first, last):
            self.waits.backbone(stream, layer, lengths, sources)
            yield boundary

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.sum(-1, keepdim=True).expand(*hidden.shape[:-1], self.info.vocab_size)

    def decoder_start(self) -> int | None:
        return self._described.decoder_start()

    def layer_weights(self, stream: str, layer: int) -> LayerWeights:
        raise RuntimeError("an emulated backbone has no weights")

    def weights(self, layers: Mapping[str, tuple[int, int]] | None = None) -> tuple[Weight, ...]:
        return self._described.weights(layers)

    def new_past(self) -> Any:
        return None

    def release(self, *, keep_head: bool) -> None:
        self._released = True

    @property
    def released(self) -> bool:
        return self._released

    def to(self, device: torch.device | str) -> Self:
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")
