"""What a backbone's weights take in memory, from the headers of its checkpoint alone: for planners, and before a device
is given its slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import Backbone, BackboneSource
from pac_core.contracts.formats import WeightFormat
from pac_core.registry import Registry


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a backbone's parts in memory, as it holds them. Parts may share tensors: tied embeddings are in the
    embeddings of each stream and in the end of the last, so a slice may take less than its parts together.

    Attributes:
        layers: per stream, of each layer.
        embeddings: per stream, of what is held with its first layer.
        ends: per stream, of what is held with its last layer: the final norm, and a language-model head.
    """

    layers: Mapping[str, tuple[int, ...]]
    embeddings: Mapping[str, int]
    ends: Mapping[str, int]


def describe(
    path: str | Path,
    dtype: torch.dtype | None,
    registry: Registry,
    *,
    digests: bool = False,
    weights: WeightFormat = "native",
) -> Backbone:
    """A backbone that holds no weight: its `info`, and where its weights lie.

    Args:
        path: folder or hub id.
        dtype: as in `BackboneSource`.
        registry: the plugins.
        digests: whether all files are fetched, and read once, piece by piece, for the fingerprint and for
            `Backbone.digests`. Else nothing but headers is read, and the fingerprint is none.
        weights: as in `BackboneSource`.

    Raises:
        BadInput: the checkpoint cannot be served; with ``digests`` also where a file of it is missing.
    """
    headers = load_backbone(BackboneSource(path, layers={}, dtype=dtype, digests={}, weights=weights), registry)
    if not digests:
        return headers
    headers.weights()  # fetches files that are not here yet, without which there is no whole fingerprint
    return load_backbone(BackboneSource(path, layers={}, dtype=dtype, weights=weights), registry)


def slice_bytes(backbone: Backbone, layers: Mapping[str, tuple[int, int]] | None = None) -> int:
    """Bytes of memory that the weights of a slice take, tensors that its parts share counted once.

    Args:
        backbone: of a checkpoint; what it holds does not matter (see `describe`).
        layers: as in `BackboneSource`.

    Raises:
        BadInput: there are no such layers, or the model came from memory.
    """
    return sum(weight.nbytes for weight in backbone.weights(layers))


def weight_bytes(backbone: Backbone) -> WeightBytes:
    """Bytes of all parts of a backbone; arguments and errors as in `slice_bytes`."""
    counts = {stream.name: stream.layers for stream in backbone.info.streams}
    taken: dict[tuple[str, int], int] = {}
    for weight in backbone.weights():
        if weight.layer is not None:
            taken[weight.layer] = taken.get(weight.layer, 0) + weight.nbytes
    return WeightBytes(
        {name: tuple(taken[name, i] for i in range(count)) for name, count in counts.items()},
        {name: slice_bytes(backbone, {name: (0, 0)}) for name in counts},
        {name: slice_bytes(backbone, {name: (count, count)}) for name, count in counts.items()},
    )
