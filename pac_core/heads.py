"""The trainable head of classification and regression: pooling over a row's tokens, then one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pac_core.contracts.adapter import Rows


class PooledHead(nn.Module):
    """Mean over each text's tokens, standardised, then a linear layer.

    A row of two texts gives ``[u, v, |u - v|, u * v]`` of their means u and v, and beside that linear layer a second one
    reads the frozen `pac_core.alignment.match_statistics`, standardised. Features are standardised with the
    mean and deviation of the frozen backbone's means over the training data (see `calibrate`): the frozen features of
    a pretrained encoder lie in a narrow cone, which a linear layer learns slowly. Regression targets are standardised
    likewise.

    Args:
        width: d.
        outputs: classes, or 1 for regression.
        texts: texts in a row, 1 or 2.
        statistics: number of match statistics of a row, 0 with one text.
        dropout: probability on the features.
    """

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor
    match_mean: Tensor
    match_deviation: Tensor

    def __init__(self, width: int, outputs: int, texts: int = 1, statistics: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.texts = texts
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width * (1 if texts == 1 else 4), outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.match = nn.Linear(statistics, outputs, bias=False) if statistics else None
        if self.match is not None:
            nn.init.zeros_(self.match.weight)
            self.register_buffer("match_mean", torch.zeros(statistics))
            self.register_buffer("match_deviation", torch.ones(statistics))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_deviation", torch.ones(()))

    def pool(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Means (rows, texts, d) of hidden (tokens, d)."""
        owner = rows.row_of.to(hidden.device)
        if self.texts > 1 and rows.segments is not None:
            owner = owner * self.texts + rows.segments.to(hidden.device)
        slots = len(rows.lengths) * self.texts
        count = torch.bincount(owner, minlength=slots).clamp(min=1)
        total = hidden.new_zeros(slots, hidden.shape[-1]).index_add(0, owner, hidden)
        return (total / count[:, None]).view(len(rows.lengths), self.texts, -1)

    @torch.no_grad()
    def calibrate(self, pooled: Tensor, statistics: Tensor | None = None, targets: Tensor | None = None) -> None:
        """Set the standardisation from means (samples, texts, d) of frozen hidden states, match statistics (samples,
        statistics) and, for regression, targets (samples,). Needs two samples or more to have an effect."""
        flat = pooled.flatten(0, 1)
        if len(flat) > 1:
            self.mean.copy_(flat.mean(0))
            self.deviation.copy_(flat.std(0).clamp(min=1e-4))
        if statistics is not None and len(statistics) > 1:
            self.match_mean.copy_(statistics.mean(0))
            self.match_deviation.copy_(statistics.std(0) + 1e-3)
        if targets is not None and len(targets) > 1:
            self.target_mean.copy_(targets.mean())
            self.target_deviation.copy_(targets.std().clamp(min=1e-4))

    def forward(self, hidden: Tensor, rows: Rows, statistics: Tensor | None = None) -> Tensor:
        """Outputs (rows, outputs): logits, or standardised numbers, of hidden (tokens, d) and match statistics."""
        pooled = (self.pool(hidden, rows) - self.mean) / self.deviation
        if self.texts == 1:
            features = pooled[:, 0]
        else:
            u, v = pooled[:, 0], pooled[:, 1]
            features = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
        outputs: Tensor = self.linear(self.dropout(features))
        if self.match is None or statistics is None:
            return outputs
        scaled = (statistics - self.match_mean) / self.match_deviation
        matched: Tensor = self.match(self.dropout(scaled.clamp(-4, 4)))
        return outputs + matched

    def numbers(self, outputs: Tensor) -> Tensor:
        """Regression outputs (rows, 1) in the targets' own unit, (rows,)."""
        return outputs[:, 0] * self.target_deviation + self.target_mean

    def regression_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error in standardised units; targets (rows,)."""
        return F.mse_loss(outputs[:, 0], ((targets - self.target_mean) / self.target_deviation).to(outputs.dtype))
