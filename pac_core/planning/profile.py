"""Costs of a model's layers, worked out from its shapes rather than measured."""

from __future__ import annotations

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneInfo, Stream, tap_indices
from pac_core.contracts.cluster import LayerProfile, Profile
from pac_core.planning.stage_memory import SINGLE, TRAINED, kept_numbers, layer_numbers, side_numbers


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
    weights = layer_numbers(info, stream, d)
    side = side_numbers(info, adapter, stream) if tapped else 0
    return LayerProfile(
        flops=2.0 * weights,
        pair_flops=4.0 * d * (2 if stream.cross else 1),
        side_flops=6.0 * side,
        weight_bytes=weights * size,
        side_bytes=side * SINGLE * TRAINED,
        hidden_bytes=d * size,
        state_bytes=2 * (d // adapter.reduction) * SINGLE,
        tap_bytes=d * size if tapped else 0,
        kept_bytes=SINGLE * (d + kept_numbers(info, adapter, stream)) if tapped else 0,
        gradient_bytes=side * SINGLE,
    )
