"""How well the tokens of two texts match, by the frozen backbone's own similarities.

A pair whose texts the backbone read apart meets for the first time in the side network and the head, which cannot learn
matching from a few thousand pairs. The backbone's similarities need no learning: for each token, the largest cosine to
any token of the other text, in the taps of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pac_core.contracts.adapter import Rows, Taps

STATISTICS = 5
"""Numbers per tap and text in `Matches.statistics`."""

LEAST = 3
"""Worst matched tokens of a text whose mean is one of them."""


@dataclass(frozen=True)
class Matches:
    """How well the two texts of each row match.

    Attributes:
        tokens: (taps, tokens) the largest cosine of each token to a token of its row's other text.
        statistics: (rows, taps * (2 * `STATISTICS` + 1) + 3): for each tap and text the mean, the least, the mean of
            the `LEAST` least, the deviation of its tokens' matches, and an eighth of the number of those below 0.5;
            for each tap the cosine of the texts' means; of the lengths' logarithms difference, distance and sum.
    """

    tokens: Tensor
    statistics: Tensor


class Matcher(nn.Module):
    """Matches of rows that hold two texts.

    Cosines are taken of what sets a token apart from the mean token of its tap over the training data, since a layer's
    hidden states share a large common part; a row's own mean would take away what its texts have in common.

    Args:
        taps: number of taps.
        hidden: d.
    """

    center: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, taps: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(taps, 1, hidden))
        self.register_buffer("mean", torch.zeros(taps, 1))
        self.register_buffer("deviation", torch.ones(taps, 1))

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Taps]) -> Tensor:
        """Set the mean token of each tap, then mean and deviation of the tokens' matches; returns all statistics."""
        count = sum(taps.values.shape[1] for taps in batches)
        self.center.copy_(torch.stack([taps.values.sum(1, keepdim=True) for taps in batches]).sum(0) / count)
        found = [self(taps) for taps in batches]
        tokens = torch.cat([matches.tokens for matches in found], 1)
        self.mean.copy_(tokens.mean(1, keepdim=True))
        self.deviation.copy_(tokens.std(1, keepdim=True) + 1e-3)
        return torch.cat([matches.statistics for matches in found])

    def scaled(self, tokens: Tensor) -> Tensor:
        """Matches (taps, tokens) with the calibrated mean 0 and deviation 1."""
        return (tokens - self.mean) / self.deviation

    @torch.no_grad()
    def forward(self, taps: Taps) -> Matches:
        values = taps.values.to(self.center.device) - self.center
        first, second = (_places(taps.rows, text).to(values.device) for text in (0, 1))
        unit = F.normalize(values, dim=2)
        cosine = _take(unit, first) @ _take(unit, second).transpose(2, 3)  # (taps, rows, first width, second width)
        cosine.masked_fill_((first < 0)[:, :, None] | (second < 0)[:, None, :], -1.0)
        tokens = values.new_zeros(values.shape[:2])
        parts, means = [], []
        for places, match in ((first, cosine.amax(3)), (second, cosine.amax(2))):
            real = places >= 0
            tokens[:, places[real]] = match[:, real]
            parts.append(_summary(match, real))
            means.append(_take(values, places).sum(2))
        alike = F.cosine_similarity(means[0], means[1], dim=2)
        lengths = torch.stack([(p >= 0).sum(1) for p in (first, second)]).to(values.dtype).clamp(min=1).log()
        apart = lengths[0] - lengths[1]
        extent = torch.stack([apart, apart.abs(), lengths.sum(0)])
        columns = [*parts[0].flatten(0, 1), *parts[1].flatten(0, 1), *alike, *extent]
        return Matches(tokens, torch.stack(columns, 1))


def statistics_width(taps: int) -> int:
    """Number of columns of `Matches.statistics`."""
    return taps * (2 * STATISTICS + 1) + 3


def _places(rows: Rows, text: int) -> Tensor:
    """(rows, longest) place of each token of the row's text of this index, -1 as padding."""
    assert rows.segments is not None
    places = (rows.segments == text).nonzero()[:, 0]
    owner = rows.row_of[places]
    counts = torch.bincount(owner, minlength=len(rows.lengths))
    column = torch.arange(len(places)) - (counts.cumsum(0) - counts)[owner]
    found = torch.full((len(counts), max(int(counts.max()), 1)), -1)
    found[owner, column] = places
    return found


def _take(values: Tensor, places: Tensor) -> Tensor:
    """(taps, rows, longest, d) of values (taps, tokens, d), zeros as padding."""
    taken = values[:, places.clamp(min=0)]
    return taken.masked_fill_((places < 0)[:, :, None], 0.0)


def _summary(match: Tensor, real: Tensor) -> Tensor:
    """(`STATISTICS`, taps, rows) of match (taps, rows, longest), of which those in real (rows, longest) count."""
    count = real.sum(1).clamp(min=1)
    match = match.masked_fill(~real, 0.0)
    mean = match.sum(2) / count
    spread = (match.square().sum(2) / count - mean.square()).clamp(min=0).sqrt()
    ranked = match.masked_fill(~real, 2.0).topk(min(LEAST, match.shape[2]), 2, largest=False).values.sort(2).values
    few = ranked.masked_fill(ranked > 1.5, 0.0).sum(2) / count.clamp(max=LEAST)
    unmatched = ((match < 0.5) & real).sum(2) / 8
    return torch.stack([mean, ranked[:, :, 0], few, spread, unmatched])
