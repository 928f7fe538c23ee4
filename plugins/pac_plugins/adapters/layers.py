"""Building blocks of a side network: attention and MLP at width r, with packed projections."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from pac_core.contracts.adapter import Memory, Rows
from pac_core.contracts.backbone import BackboneInfo
from pac_core.hardware import SHORT

LANES = 16
"""float32 numbers in a vector register of current CPUs."""

Past = dict[str, tuple[Tensor, Tensor]]
"""Keys and values (rows, heads, tokens so far, head width) of each attention, by the attention's name."""


def side_norm(info: BackboneInfo, width: int) -> nn.Module:
    """The backbone's kind of norm at side width, freshly initialised."""
    if info.norm == "rms":
        return nn.RMSNorm(width, eps=info.norm_eps)
    return nn.LayerNorm(width, eps=info.norm_eps)


class Residual(nn.Module):
    """Adds a branch to what it came from, with dropout that drops channels of a row for all its tokens alike (Gal and
    Ghahramani 2016): next to no random numbers are drawn, which at side widths took as long as the attention itself."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.kept = 1 - dropout

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x and branch (rows, width, r) to the same."""
        if not self.training or self.kept == 1:
            return x + branch
        return torch.addcmul(x, branch, x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(self.kept).div_(self.kept))


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
        if past is None:
            mixed = attend(query, key, value, rows.lengths, self.causal)
        else:
            key, value, seen = _extend(past, self.name, key, value)
            mask = _causal_mask(x.shape[1], seen, x.device) if self.causal and x.shape[1] > 1 else None
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
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
        mixed = attend(query, key, value, memory.rows.lengths)
        return self.out(mixed.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], causal: bool = False) -> Tensor:
    """Attention of query (rows, heads, width, channels) to key and value (rows, heads, tokens, channels), of whose rows
    ``lengths`` tokens are real; to the shape of ``query``.

    On CPUs and up to `SHORT` tokens it is plain matrix products: torch's own takes up to twice as long there, above all
    where the source width is no multiple of the vector length; so keys are padded to one.
    """
    count, heads, tokens, channels = key.shape
    if tokens > SHORT or query.device.type != "cpu":
        mask = None if causal or min(lengths) == tokens else Rows(lengths).mask
        mask = None if mask is None else mask[:, None, None].to(query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    extra = -tokens % LANES
    bias = attention_bias(lengths, heads, tokens + extra, causal, query.dtype)
    key, value = (F.pad(part, (0, 0, 0, extra)).flatten(0, 1) for part in (key, value))
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.transpose(1, 2), alpha=channels**-0.5)
    return torch.bmm(scores.softmax(-1), value).unflatten(0, (count, heads))


@lru_cache(maxsize=4)  # all layers of a stream ask for the same
def attention_bias(lengths: tuple[int, ...], heads: int, keys: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """(rows * heads, width or 1, keys) of what is added to scores: 0 for tokens that are seen, -inf for others and for
    keys beyond the width."""
    place = torch.arange(keys)
    if causal:  # padding is on the right, where no real token sees it
        seen = (place <= torch.arange(max(lengths))[:, None]).expand(len(lengths), -1, -1)
    else:
        seen = (place < torch.tensor(lengths)[:, None])[:, None]
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).repeat_interleave(heads, 0)


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
