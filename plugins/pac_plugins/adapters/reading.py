"""Reading taps: down-projection to width r and a norm, for all taps of a stream in one grouped matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pac_core.contracts.adapter import Rows
from pac_core.contracts.backbone import BackboneInfo
from pac_plugins.adapters.layers import side_norm


class TapRead(nn.Module):
    """Parameters for reading a tap: down-projection, norm, and what a token's matches in all taps add."""

    def __init__(self, info: BackboneInfo, width: int, taps: int) -> None:
        super().__init__()
        self.down = nn.Linear(info.hidden_size, width)
        self.norm = side_norm(info, width)
        self.match = nn.Parameter(torch.randn(taps, width) * 0.1)


def read_taps(reads: Sequence[TapRead], values: Tensor, rows: Rows) -> list[Tensor]:
    """``norm(W b_i + c)`` (rows, width, r) of each tap b_i in values (taps, tokens, d), by its own `TapRead`; to it is
    added how well tokens match, where the rows tell."""
    padded = rows.pad(values)  # before the product, so that its shapes are few: each new one is compiled first
    weight = torch.stack([read.down.weight for read in reads])
    narrow = project(padded.flatten(1, 2), weight).view(*padded.shape[:3], -1)
    found = [read.norm(tap + read.down.bias) for read, tap in zip(reads, narrow)]
    if rows.match is None:
        return found
    match = rows.pad(rows.match.t()).flatten(0, 1)
    return [torch.addmm(tap.flatten(0, 1), match, read.match).view_as(tap) for read, tap in zip(reads, found)]


def project(values: Tensor, weight: Tensor) -> Tensor:
    """values (groups, tokens, d) times weight (groups, r, d): (groups, tokens, r) in the weight's dtype.

    Values of another dtype are multiplied in theirs, the weight rounded to it, with sums in float32.
    """
    if values.dtype == weight.dtype:
        return torch.bmm(values, weight.transpose(1, 2))
    found: Tensor = _Project.apply(values, weight)
    return found


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        ctx.dtype = weight.dtype
        return torch.bmm(values, weight.to(values.dtype).transpose(1, 2)).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (values,) = ctx.saved_tensors
        return None, torch.bmm(grad.to(values.dtype).transpose(1, 2), values).to(ctx.dtype)
