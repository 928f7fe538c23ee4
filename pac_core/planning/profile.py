"""Costs of a model's layers, worked out from its shapes rather than measured."""

from __future__ import annotations

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import ENCODER, BackboneInfo, Stream, tap_indices
from pac_core.contracts.cluster import LayerProfile, Profile

TRAINED_BYTES = 16
"""Of a trained number: itself, its gradient and AdamW's two moments, in float32."""

KEPT_STATES = 16
"""Tensors of a side layer's width that autograd keeps, about; see `pac_plugins.adapters.layers`."""


def analytic_profile(info: BackboneInfo, adapter: AdapterConfig, target: str, *, head: bool) -> Profile:
    """The profile of a backbone with an adapter.

    Key and value heads count as many as query heads, so models that share them are taken for slightly slower and larger
    than they are.

    Args:
        target: the stream that the side network ends with.
        head: whether a language-model head is held with the last layer.
    """
    names = [stream.name for stream in info.streams]
    chain = info.streams[: names.index(target) + 1]
    size = info.dtype.itemsize
    table = info.vocab_size * info.hidden_size * size
    layers = {stream.name: _layers(info, adapter, stream) for stream in chain}
    return Profile(layers, {stream.name: table for stream in chain}, table if head else 0, adapter.tap_every)


def _layers(info: BackboneInfo, adapter: AdapterConfig, stream: Stream) -> tuple[LayerProfile, ...]:
    tapped = tap_indices(stream.layers, adapter.tap_every)
    return tuple(_layer(info, adapter, stream, tapped=i + 1 in tapped) for i in range(stream.layers))


def _layer(info: BackboneInfo, adapter: AdapterConfig, stream: Stream, *, tapped: bool) -> LayerProfile:
    d, size = info.hidden_size, info.dtype.itemsize
    width = max(d // adapter.reduction, 1)
    mlp = max(info.intermediate_size // adapter.reduction, 1)
    weights = _weights(info, stream, d, info.intermediate_size)
    side = (d * width + _weights(info, stream, width, mlp)) if tapped else 0
    return LayerProfile(
        flops=2.0 * weights,
        pair_flops=4.0 * d * (2 if stream.cross else 1),
        side_flops=6.0 * side,
        weight_bytes=weights * size,
        side_bytes=side * TRAINED_BYTES,
        hidden_bytes=d * size,
        state_bytes=2 * width * 4,
        tap_bytes=d * size if tapped else 0,
        kept_bytes=4 * (d + KEPT_STATES * width + 2 * mlp) if tapped else 0,
    )


def _weights(info: BackboneInfo, stream: Stream, width: int, mlp: int) -> int:
    """Numbers in the matrices of one layer."""
    attentions = 2 if stream.cross and stream.name != ENCODER else 1
    return attentions * 4 * width * width + (3 if info.gated_mlp else 2) * width * mlp
