"""Building blocks of a side network: attention and MLP at width r, with packed projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from pac_core.contracts.adapter import Memory, Rows
from pac_core.contracts.backbone import BackboneInfo

Past = dict[str, tuple[Tensor, Tensor]]
"""Keys and values (rows, heads, tokens so far, head width) of each attention, by the attention's name."""


def side_norm(info: BackboneInfo, width: int) -> nn.Module:
    """The backbone's kind of norm at side width, freshly initialised."""
    if info.norm == "rms":
        return nn.RMSNorm(width, eps=info.norm_eps)
    return nn.LayerNorm(width, eps=info.norm_eps)


class RowDropout(nn.Module):
    """Drops channels of a row for all its tokens alike (Gal and Ghahramani 2016): next to no random numbers are drawn,
    which at side widths took as long as the attention itself."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width, r) to the same."""
        if not self.training or not self.probability:
            return x
        kept = 1 - self.probability
        return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(kept).div_(kept)


class SelfAttention(nn.Module):
    """Attention of a row's tokens to each other; positions reach it through the taps, which carry them.

    Args:
        width: r.
        heads: number of heads; head width is r / heads.
        causal: tokens see only those before them. Padding is on the right, so it needs no mask then.
        name: key of this attention in a `Past`.
    """

    def __init__(self, width: int, heads: int, causal: bool, name: str) -> None:
        super().__init__()
        self.heads, self.causal, self.name = heads, causal, name
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rows: Rows, past: Past | None = None) -> Tensor:
        """x (rows, width, r) to (rows, width, r)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value, seen = _extend(past, self.name, key, value)
            mask = _causal_mask(x.shape[1], seen, x.device) if self.causal and x.shape[1] > 1 else None
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mask = None if self.causal or rows.mask is None else rows.mask[:, None, None].to(x.device)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of a side decoder's tokens to the side encoder's output. Arguments as in `SelfAttention`."""

    def __init__(self, width: int, heads: int, name: str) -> None:
        super().__init__()
        self.heads, self.name = heads, name
        self.query = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """x (rows, width, r), memory.state (rows, source width, r) to (rows, width, r)."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if past is not None and self.name in past:
            key, value = past[self.name]
        else:
            key, value = self.kv(memory.state).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            if past is not None:
                past[self.name] = key, value
        mask = None if memory.mask is None else memory.mask[:, None, None].to(x.device)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The backbone's kind of MLP at side width: r to f / k and back, gated where the backbone's is."""

    def __init__(self, info: BackboneInfo, width: int, inner: int) -> None:
        super().__init__()
        self.gated = info.gated_mlp
        self.up = nn.Linear(width, 2 * inner if self.gated else inner)
        self.down = nn.Linear(inner, width)
        self.act = ACT2FN[info.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., r) to (..., r)."""
        inner = self.up(x)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.down(self.act(gate) * inner)
        return self.down(self.act(inner))


def _extend(past: Past, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, int]:
    seen = 0
    if name in past:
        old_key, old_value = past[name]
        seen = old_key.shape[2]
        key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
    past[name] = key, value
    return key, value, seen


def _causal_mask(new: int, seen: int, device: torch.device) -> Tensor:
    return torch.ones(new, seen + new, dtype=torch.bool, device=device).tril(seen)
