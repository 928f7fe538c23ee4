"""Costs of a model's layers, worked out from its shapes rather than measured."""

from __future__ import annotations

from dataclasses import replace

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneInfo, Stream, tap_indices
from pac_core.contracts.cluster import LayerProfile, Profile
from pac_core.int8 import int8_size
from pac_core.planning.stage_memory import SINGLE, TRAINED, kept_numbers, layer_numbers, side_numbers


def analytic_profile(info: BackboneInfo, adapter: AdapterConfig, target: str, *, head: bool) -> Profile:
    """The profile of a backbone with an adapter.

    The entry of b_0 counts with the first layer's. Key and value heads count as many as query heads, so models that
    share them are taken for slightly slower and larger than they are.

    Args:
        target: the stream that the side network ends with.
        head: whether a language-model head is held with the last layer.
    """
    names = [stream.name for stream in info.streams]
    chain = info.streams[: names.index(target) + 1]
    size = info.dtype.itemsize
    table = info.vocab_size * info.hidden_size * size
    layers = {s.name: _with_ends(info, adapter, _layers(info, adapter, s), exits=s.name == target) for s in chain}
    native = Profile(
        layers,
        {stream.name: table for stream in chain},
        head_bytes=table if head else 0,
        first_cut=adapter.tap_every,
        head_flops=2.0 * info.hidden_size * (info.vocab_size if head else 1),
    )
    return native if info.weights == "native" else quantised(native)


def quantised(profile: Profile) -> Profile:
    """``profile`` with the matrices of the backbone's layers held as int8, for a scheduler that finds no room for them
    as they are. It is equal to ``profile`` where no layer can be held so, or all are already. A scheduler that makes a
    plan of it says so in `Plan.weights`.

    Speeds stay: matrices are turned back for their products, which makes passes of a thousand tokens or more 0 to 6
    percent longer (MiniLM). What is turned back at once (8 MB or less in float32) is not counted.
    """
    if not any(layer.int8_bytes for layers in profile.layers.values() for layer in layers):
        return profile
    held = {
        stream: tuple(
            replace(layer, weight_bytes=layer.int8_bytes or layer.weight_bytes, int8_bytes=0) for layer in layers
        )
        for stream, layers in profile.layers.items()
    }
    return replace(profile, layers=held, weights="int8")


def unquantisable(profile: Profile) -> Profile:
    """``profile`` for a run that does not leave it to the plan how weights are held."""
    layers = {
        stream: tuple(replace(layer, int8_bytes=0) for layer in layers) for stream, layers in profile.layers.items()
    }
    return replace(profile, layers=layers)


def _layers(info: BackboneInfo, adapter: AdapterConfig, stream: Stream) -> tuple[LayerProfile, ...]:
    tapped = tap_indices(stream.layers, adapter.tap_every)
    return tuple(
        _layer(info, adapter, stream, taps=(i + 1 in tapped) + (i == 0), side=i + 1 in tapped)
        for i in range(stream.layers)
    )


def _with_ends(
    info: BackboneInfo, adapter: AdapterConfig, layers: tuple[LayerProfile, ...], *, exits: bool
) -> tuple[LayerProfile, ...]:
    """``layers`` with the side network's entry, which reads b_0, at the first, and its exit at the last if it is here:
    matrices of d x r that are trained, and that next to no time is spent on."""
    size = SINGLE * info.hidden_size * (info.hidden_size // adapter.reduction)
    found = list(layers)
    for place, more in ((0, size), (-1, size * exits)):
        layer = found[place]
        found[place] = replace(
            layer, side_bytes=layer.side_bytes + TRAINED * more, gradient_bytes=layer.gradient_bytes + more
        )
    return tuple(found)


def _layer(info: BackboneInfo, adapter: AdapterConfig, stream: Stream, *, taps: int, side: bool) -> LayerProfile:
    """A layer of which the cache keeps so many taps, with or without a side layer."""
    d, size = info.hidden_size, info.dtype.itemsize
    width = d // adapter.reduction
    weights, beside = layer_numbers(info, stream, d), side_numbers(info, adapter, stream) if side else 0
    attended = 2 * d * d if stream.cross else 0  # weights that work on the tokens attended to
    attended_beside = 2 * width * width if stream.cross and side and adapter.name != "bottleneck" else 0
    return LayerProfile(
        flops=2.0 * (weights - attended),
        pair_flops=4.0 * d * (2 if stream.cross else 1),
        side_flops=6.0 * (beside - attended_beside),
        weight_bytes=weights * size,
        side_bytes=beside * SINGLE * TRAINED,
        hidden_bytes=d * size,
        state_bytes=2 * width * SINGLE,
        tap_bytes=taps * d * size,
        kept_bytes=SINGLE * (d + kept_numbers(info, adapter, stream)) if side else 0,
        cross_flops=2.0 * attended,
        gradient_bytes=beside * SINGLE,
        cross_side_flops=6.0 * attended_beside,
        int8_bytes=int8_size(weights),
    )
