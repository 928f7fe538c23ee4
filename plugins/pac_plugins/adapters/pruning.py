"""Structural pruning: a side network's first weights, taken from the backbone's own.

As in Ladder Side-Tuning, the residual channels kept are the same in every layer, so that what one trimmed layer writes
the next one reads at the same place. Importance is the L1 norm of all weights that touch a channel (Li et al. 2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pac_core.contracts.backbone import AttentionWeights, Backbone, LayerWeights

if TYPE_CHECKING:
    from pac_plugins.adapters.layers import CrossAttention, Mlp, SelfAttention
    from pac_plugins.adapters.parallel import ParallelSideNetwork, SideLayer

BRANCH_GAIN = 0.5
"""Gain of what a branch adds to the normalised state; the first value that trained well, not searched further."""


@torch.no_grad()
def prune_into(network: ParallelSideNetwork, backbone: Backbone) -> None:
    """Overwrite the weights of ``network`` with rows and columns of the backbone's.

    Every matrix keeps its most important inner channels, and the residual channels that matter most over all layers
    and streams. What is left of a matrix is scaled to a fixed gain, since families differ widely in theirs (T5's
    attention has no 1 / sqrt(width)), and a sum over an eighth of the inputs has another scale anyway.
    """
    kept = residual_channels(network, backbone)
    for name in network.reads:
        side = network.streams[name]
        _select(side.enter.down, kept)
        for index in range(1, len(side.taps)):
            layer: SideLayer = side.layers[str(index)]
            _select(layer.read.down, kept)
            weights = backbone.layer_weights(name, side.taps[index] - 1)
            _prune_layer(layer, weights, kept)


def residual_channels(network: ParallelSideNetwork, backbone: Backbone) -> Tensor:
    """(r,) int64 indices of the residual channels with the largest L1 norm over all tapped layers, ascending."""
    score = torch.zeros(backbone.info.hidden_size, dtype=torch.float64)
    for name in network.reads:
        for tap in network.streams[name].taps[1:]:
            weights = backbone.layer_weights(name, tap - 1)
            for matrix in _readers(weights):
                score += matrix.abs().sum(0, dtype=torch.float64).cpu()
            for matrix in _writers(weights):
                score += matrix.abs().sum(1, dtype=torch.float64).cpu()
    return score.topk(network.widths.state).indices.sort().values


def _readers(w: LayerWeights) -> list[Tensor]:
    cross = [w.cross.query] if w.cross else []
    return [
        w.attention.query,
        w.attention.key,
        w.attention.value,
        w.up,
        *cross,
        *([w.gate] if w.gate is not None else []),
    ]


def _writers(w: LayerWeights) -> list[Tensor]:
    return [w.attention.output, w.down, *([w.cross.output] if w.cross else [])]


def _prune_layer(layer: SideLayer, weights: LayerWeights, kept: Tensor) -> None:
    _prune_self_attention(layer.attention, weights.attention, kept)
    if layer.cross is not None and weights.cross is not None:
        _prune_cross_attention(layer.cross, weights.cross, kept)
    _prune_mlp(layer.mlp, weights, kept)


def _prune_self_attention(side: SelfAttention, weights: AttentionWeights, kept: Tensor) -> None:
    query, key, value, output = _attention(weights, kept, side.heads)
    side.qkv.weight.copy_(torch.cat([query, key, value]))
    side.out.weight.copy_(output)
    _zero_biases(side.qkv, side.out)


def _prune_cross_attention(side: CrossAttention, weights: AttentionWeights, kept: Tensor) -> None:
    query, key, value, output = _attention(weights, kept, side.heads)
    side.query.weight.copy_(query)
    side.kv.weight.copy_(torch.cat([key, value]))
    side.out.weight.copy_(output)
    _zero_biases(side.query, side.kv, side.out)


def _attention(w: AttentionWeights, kept: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v (r, r) and o (r, r): each side head is made of the most important channels of one backbone head.

    The backbone heads with the largest values and outputs are kept; where there are fewer than side heads, they serve
    again. In a head the channels of q and k are kept in pairs, and those of v and o.
    """
    channels = w.query.shape[0] // w.heads
    groups = w.query.shape[0] // w.key.shape[0]  # grouped queries: query head h reads key head h // groups
    key, value = (m.unflatten(0, (-1, channels)).repeat_interleave(groups, 0).flatten(0, 1) for m in (w.key, w.value))
    query, key, value, output = w.query[:, kept], key[:, kept], value[:, kept], w.output[kept]
    match = query.norm(dim=1) * key.norm(dim=1)
    carried = value.norm(dim=1) * output.norm(dim=0)
    per_head = value.unflatten(0, (-1, channels)).norm(dim=(1, 2)) * output.unflatten(1, (-1, channels)).norm(
        dim=(0, 2)
    )
    scores, values = [], []
    for head in _top(per_head, heads).tolist():
        first = head * channels
        scores.append(first + _top(match[first : first + channels], len(kept) // heads))
        values.append(first + _top(carried[first : first + channels], len(kept) // heads))
    chosen, carriers = torch.cat(scores), torch.cat(values)
    return (
        _gain(query[chosen], 1.0),
        _gain(key[chosen], 1.0),
        _gain(value[carriers], 1.0),
        _gain(output[:, carriers], BRANCH_GAIN),
    )


def _zero_biases(*linears: nn.Linear) -> None:
    for linear in linears:
        linear.bias.zero_()


def _prune_mlp(side: Mlp, w: LayerWeights, kept: Tensor) -> None:
    inner = side.down.in_features
    rows = _top(w.up[:, kept].norm(dim=1) * w.down[kept].norm(dim=0), inner)
    up = _gain(w.up[rows][:, kept], 1.0)
    if w.gate is not None:
        up = torch.cat([_gain(w.gate[rows][:, kept], 1.0), up])
    side.up.weight.copy_(up)
    side.down.weight.copy_(_gain(w.down[kept][:, rows], BRANCH_GAIN))
    _zero_biases(side.up, side.down)


def _gain(matrix: Tensor, gain: float) -> Tensor:
    """``matrix`` scaled so that its rows have ``gain`` as their root mean square norm."""
    return matrix * (gain / matrix.norm(dim=1).square().mean().sqrt().clamp(min=1e-6))


def _top(importance: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest, ascending; all, repeated, where there are fewer."""
    if count > len(importance):
        return torch.arange(count, device=importance.device) % len(importance)
    return importance.topk(count).indices.sort().values


def _select(linear: nn.Linear, kept: Tensor) -> None:
    """Make a d-to-r projection pick the kept channels."""
    linear.weight.zero_()
    linear.weight[torch.arange(len(kept)), kept] = 1.0
    if linear.bias is not None:
        linear.bias.zero_()
