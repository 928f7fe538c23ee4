"""How well the tokens of two texts match, by the frozen backbone's own similarities.

A pair whose texts the backbone read apart meets for the first time in the side network and the head, which cannot learn
matching from a few thousand pairs. The backbone's similarities need no learning: for each token, the largest cosine to
any token of the other text, in the taps of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pac_core.contracts.adapter import Rows, widened

STATISTICS = 4
"""Numbers per tap and text in `match_statistics`."""


@dataclass(frozen=True)
class Halves:
    """A batch of two-text rows split into its first and its second texts.

    Attributes:
        second: (tokens,) bool, True for tokens of second texts.
        first_rows, second_rows: the rows of either side.
    """

    second: Tensor
    first_rows: Rows
    second_rows: Rows


def halves(rows: Rows, device: torch.device) -> Halves:
    """Split rows that hold two texts each; ``rows.segments`` must be there."""
    assert rows.segments is not None
    second = rows.segments.to(device) == 1
    seconds = torch.bincount(rows.row_of[rows.segments == 1], minlength=len(rows.lengths))
    firsts = torch.tensor(rows.lengths) - seconds
    return Halves(second, Rows(tuple(firsts.tolist())), Rows(tuple(seconds.tolist())))


@torch.no_grad()
def alignment(b_i: Tensor, rows: Rows, split: Halves | None = None) -> Tensor:
    """(tokens,) best cosine, at least 0, of each token of b_i (tokens, d) to the tokens of its row's other text.

    Cosines are taken after the row's mean is removed, since a layer's hidden states share a large common part.
    """
    b_i = widened(b_i)
    split = halves(rows, b_i.device) if split is None else split
    first, other, second = split.first_rows, split.second_rows, split.second
    if first.width == 0 or other.width == 0:
        return b_i.new_zeros(len(b_i))
    owner = rows.row_of.to(b_i.device)
    lengths = torch.tensor(rows.lengths, device=b_i.device)
    mean = b_i.new_zeros(len(lengths), b_i.shape[1]).index_add(0, owner, b_i) / lengths[:, None]
    unit = F.normalize(b_i - mean[owner], dim=1)
    cosine = first.pad(unit[~second]) @ other.pad(unit[second]).transpose(1, 2)  # (rows, first width, second width)
    if first.mask is not None:
        cosine = cosine.masked_fill(~first.mask.to(b_i.device)[:, :, None], 0.0)
    if other.mask is not None:
        cosine = cosine.masked_fill(~other.mask.to(b_i.device)[:, None, :], 0.0)
    found = b_i.new_empty(len(b_i))
    found[~second] = first.unpad(cosine.amax(2)[..., None])[:, 0]
    found[second] = other.unpad(cosine.amax(1)[..., None])[:, 0]
    return found.clamp(min=0)


@torch.no_grad()
def match_statistics(values: Tensor, rows: Rows) -> Tensor:
    """(rows, taps * (2 * `STATISTICS` + 1) + 2) numbers that say how well two texts match.

    For each tap of values (taps, tokens, d) and text: mean, least, deviation of its tokens' `alignment`, and the number
    of tokens below 0.5; for each tap the cosine of the texts' means; and the logarithms of the lengths.
    """
    split = halves(rows, values.device)
    owner = rows.row_of.to(values.device) * 2 + split.second.long()
    count = torch.bincount(owner, minlength=2 * len(rows.lengths)).to(widened(values[:0]).dtype)
    parts = [count.log().view(-1, 2)]
    for tap in map(widened, values):
        match = alignment(tap, rows, split)
        mean = torch.zeros_like(count).index_add(0, owner, match) / count
        square = torch.zeros_like(count).index_add(0, owner, match.square()) / count
        least = torch.ones_like(count).scatter_reduce(0, owner, match, "amin")
        unmatched = torch.zeros_like(count).index_add(0, owner, (match < 0.5).to(match.dtype))
        spread = (square - mean.square()).clamp(min=0).sqrt()
        texts = tap.new_zeros(len(count), tap.shape[1]).index_add(0, owner, tap) / count[:, None]
        pooled = F.cosine_similarity(texts[::2], texts[1::2])
        parts += [part.view(-1, 2) for part in (mean, least, spread, unmatched)] + [pooled[:, None]]
    return torch.cat(parts, 1)


def statistics_width(taps: int) -> int:
    """Number of columns of `match_statistics`."""
    return taps * (2 * STATISTICS + 1) + 2
