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

from pac_core.contracts.adapter import Rows, Taps, widened

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
        self.center.copy_(torch.stack([widened(taps.values).sum(1, keepdim=True) for taps in batches]).sum(0) / count)
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
        values = taps.values.to(self.center.device)
        places = [_places(taps.rows, text).to(values.device) for text in (0, 1)]
        one, two = (self._centred(values, of_text) for of_text in places)
        cosine = _cosines(one, two).masked_fill_((places[0] < 0)[:, :, None] | (places[1] < 0)[:, None, :], -1.0)
        matches = [cosine.amax(3), cosine.amax(2)]  # (taps, rows, longest) of the first and of the second texts
        tokens = cosine.new_zeros(values.shape[:2])
        for of_text, match in zip(places, matches):
            real = of_text >= 0
            tokens[:, of_text[real]] = match[:, real]
        texts = [_summary(match, of_text >= 0).flatten(0, 1) for of_text, match in zip(places, matches)]
        alike = F.cosine_similarity(one.sum(2), two.sum(2), dim=2)
        lengths = torch.stack([(of_text >= 0).sum(1) for of_text in places]).to(cosine.dtype).clamp(min=1).log()
        apart = lengths[0] - lengths[1]
        extent = torch.stack([apart, apart.abs(), lengths.sum(0)])
        return Matches(tokens, torch.cat([*texts, alike, extent]).t())

    def _centred(self, values: Tensor, places: Tensor) -> Tensor:
        """(taps, rows, longest, d) of values (taps, tokens, d) without the mean token, zeros as padding."""
        taken = widened(values[:, places.clamp(min=0)]).sub_(self.center[:, None])
        return taken.masked_fill_((places < 0)[:, :, None], 0.0)


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


def _cosines(one: Tensor, two: Tensor) -> Tensor:
    """(..., n, m) cosines of one (..., n, d) and two (..., m, d)."""
    norms = [text.norm(dim=-1).clamp(min=1e-12) for text in (one, two)]
    return (one @ two.transpose(-1, -2)).div_(norms[0][..., None]).div_(norms[1][..., None, :])


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
