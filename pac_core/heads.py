"""The trainable head of classification and regression: pooling over a row's tokens, then linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pac_core.alignment import statistics_width
from pac_core.contracts.adapter import Rows

QUERIES = 4
"""Learnt weightings of a text's tokens by which its matches are pooled."""


@dataclass(frozen=True)
class Pooled:
    """What the head reads of a batch.

    Attributes:
        hidden: (rows, texts, d) means of the last hidden states h.
        state: (rows, texts, r) means of the side network's last states.
        peak: (rows, r) their maxima over a row's tokens.
        statistics: (rows, statistics) match statistics of two texts, None with one or where there are none.
        attended: (rows, attended) their `MatchPool`, likewise.
    """

    hidden: Tensor
    state: Tensor
    peak: Tensor
    statistics: Tensor | None = None
    attended: Tensor | None = None


class MatchPool(nn.Module):
    """How well a text is matched, as means over its tokens weighted by learnt queries on the side network's states: an
    unmatched name tells more than an unmatched comma. The weights start alike."""

    def __init__(self, state: int) -> None:
        super().__init__()
        self.query = nn.Linear(state, QUERIES, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(self, state: Tensor, match: Tensor) -> Tensor:
        """Weights and weighted matches (tokens, `QUERIES` * (1 + taps)) of state (tokens, r), match (taps, tokens)."""
        weight = self.query(state).clamp(-8, 8).exp()
        return torch.cat([weight, (weight[:, :, None] * match.t()[:, None]).flatten(1)], 1)


class PooledHead(nn.Module):
    """Two linear layers whose outputs add up: a wide one on h at width d, a narrow one on what the side network found.

    The wide one reads the mean of each text's tokens, standardised by the mean and deviation of the frozen backbone's
    means over the training data (see `calibrate`): the features of a pretrained encoder lie in a narrow cone, which a
    linear layer learns slowly. Two texts with means u and v are read as ``[|u - v|, u * v]``. The narrow one reads the
    side network's means and, for one text, its maxima; for two also ``|u - v|``, ``u * v``, the frozen
    `pac_core.alignment.Matches.statistics` and matches pooled with learnt weights. Regression targets are standardised.

    Args:
        hidden: d.
        state: r, width of the side network's last state.
        outputs: classes, or 1 for regression.
        texts: texts in a row, 1 or 2.
        taps: taps that two texts are matched in, 0 with one text.
        dropout: probability on the features.
    """

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor
    match_mean: Tensor
    match_deviation: Tensor

    def __init__(
        self, hidden: int, state: int, outputs: int, *, texts: int = 1, taps: int = 0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.texts = texts
        self.dropout = nn.Dropout(dropout)
        self.wide = nn.Linear(hidden * texts, outputs)
        self.state_norm = nn.LayerNorm(state)
        self.matches = MatchPool(state) if taps else None
        statistics = statistics_width(taps) if taps else 0
        read = state * (2 if texts == 1 else 4) + statistics + QUERIES * taps * texts
        self.narrow = nn.Linear(read, outputs, bias=False)
        for parameter in (self.wide.weight, self.wide.bias, self.narrow.weight):
            nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("deviation", torch.ones(hidden))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_deviation", torch.ones(()))
        if taps:
            self.register_buffer("match_mean", torch.zeros(statistics))
            self.register_buffer("match_deviation", torch.ones(statistics))

    def pool(self, ragged: Tensor, rows: Rows) -> Tensor:
        """Means (rows, texts, channels) of ragged (tokens, channels)."""
        owner = rows.row_of.to(ragged.device)
        if self.texts > 1 and rows.segments is not None:
            owner = owner * self.texts + rows.segments.to(ragged.device)
        slots = len(rows.lengths) * self.texts
        count = torch.bincount(owner, minlength=slots).clamp(min=1)
        total = ragged.new_zeros(slots, ragged.shape[-1]).index_add(0, owner, ragged)
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

    def forward(self, pooled: Pooled) -> Tensor:
        """Outputs (rows, outputs): logits, or standardised numbers."""
        means = (pooled.hidden - self.mean) / self.deviation
        state = self.state_norm(pooled.state)
        if self.texts == 1:
            wide, narrow = means[:, 0], torch.cat([state[:, 0], pooled.peak], -1)
        else:
            wide = torch.cat(_compared(means), -1)
            narrow = torch.cat([state[:, 0], state[:, 1], *_compared(state)], -1)
        narrow = self.dropout(narrow)
        if pooled.statistics is not None and pooled.attended is not None:
            scaled = (pooled.statistics - self.match_mean) / self.match_deviation
            narrow = torch.cat([narrow, self.dropout(pooled.attended), scaled.clamp(-4, 4)], -1)
        outputs: Tensor = self.wide(self.dropout(wide)) + self.narrow(narrow)
        return outputs

    def attend(self, state: Tensor, rows: Rows) -> Tensor | None:
        """(rows, texts * `QUERIES` * taps) weighted means of the matches that ``rows`` carries, None without; state
        (tokens, r)."""
        if self.matches is None or rows.match is None:
            return None
        pooled = self.pool(self.matches(state, rows.match), rows)
        match = pooled[..., QUERIES:].view(*pooled.shape[:2], QUERIES, -1)
        return (match / pooled[..., :QUERIES, None].clamp(min=1e-6)).flatten(1)

    def numbers(self, outputs: Tensor) -> Tensor:
        """Regression outputs (rows, 1) in the targets' own unit, (rows,)."""
        return outputs[:, 0] * self.target_deviation + self.target_mean

    def regression_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error in standardised units; targets (rows,)."""
        return F.mse_loss(outputs[:, 0], ((targets - self.target_mean) / self.target_deviation).to(outputs.dtype))


def peaks(ragged: Tensor, rows: Rows) -> Tensor:
    """(rows, channels) maxima of ragged (tokens, channels) over each row's tokens."""
    owner = rows.row_of.to(ragged.device)[:, None].expand_as(ragged)
    lowest = ragged.new_full((len(rows.lengths), ragged.shape[-1]), -torch.inf)
    return lowest.scatter_reduce(0, owner, ragged, "amax")


def _compared(pair: Tensor) -> list[Tensor]:
    """``|u - v|`` and ``u * v`` of pair (rows, 2, channels)."""
    u, v = pair[:, 0], pair[:, 1]
    return [(u - v).abs(), u * v]
