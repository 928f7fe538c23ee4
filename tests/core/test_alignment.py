"""Matches of two texts: against a loop over rows and taps."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from pac_core.alignment import LEAST, Matcher, statistics_width
from pac_core.contracts.adapter import Rows, Taps

TAPS, HIDDEN = 3, 8
LENGTHS = ((3, 2), (1, 6), (4, 4))


def pairs(seed: int = 0, lengths: tuple[tuple[int, int], ...] = LENGTHS) -> Taps:
    generator = torch.Generator().manual_seed(seed)
    segments = torch.cat([torch.tensor([0] * a + [1] * b) for a, b in lengths])
    values = torch.randn(TAPS, len(segments), HIDDEN, generator=generator, dtype=torch.float64)
    return Taps(values + 3, Rows(tuple(a + b for a, b in lengths), segments))


@pytest.fixture
def matcher() -> Matcher:
    made = Matcher(TAPS, HIDDEN).double()
    made.calibrate([pairs(1), pairs(2)])
    return made


def texts_of(taps: Taps, row: int) -> tuple[Tensor, Tensor]:
    start = sum(taps.rows.lengths[:row])
    values = taps.values[:, start : start + taps.rows.lengths[row]]
    return values.split(LENGTHS[row], 1)


def summary(match: Tensor) -> list[Tensor]:
    few = match.sort().values[:LEAST].mean()
    return [match.mean(), match.min(), few, match.std(unbiased=False), (match < 0.5).sum() / 8]


def test_matches_and_statistics_are_what_a_loop_finds(matcher: Matcher) -> None:
    taps = pairs()
    found = matcher(taps)
    tokens = found.tokens.split(taps.rows.lengths, 1)
    for row, (a, b) in enumerate(LENGTHS):
        columns: list[list[Tensor]] = [[], [], []]
        for tap, (one, two) in enumerate(zip(*texts_of(taps, row), strict=True)):
            one, two = one - matcher.center[tap], two - matcher.center[tap]
            cosine = F.normalize(one, dim=1) @ F.normalize(two, dim=1).T
            best = cosine.amax(1), cosine.amax(0)
            assert_close(tokens[row][tap], torch.cat(best))
            for side in (0, 1):
                columns[side].append(torch.stack(summary(best[side])))
            columns[2].append(F.cosine_similarity(one.mean(0), two.mean(0), dim=0))
        sizes = torch.tensor([a, b], dtype=torch.float64).log()
        apart = sizes[0] - sizes[1]
        expected = [torch.stack(columns[side]).T.flatten() for side in (0, 1)]
        expected += [torch.stack(columns[2]), torch.stack([apart, apart.abs(), sizes.sum()])]
        assert_close(found.statistics[row], torch.cat(expected))
    assert found.statistics.shape == (len(LENGTHS), statistics_width(TAPS))


def test_a_row_matches_as_it_does_alone(matcher: Matcher) -> None:
    taps = pairs()
    alone = Taps(taps.values[:, :5], Rows((5,), taps.rows.segments[:5]))
    whole, part = matcher(taps), matcher(alone)
    assert_close(part.tokens, whole.tokens[:, :5])
    assert_close(part.statistics[0], whole.statistics[0])


def test_calibration_centres_tokens_and_scales_matches() -> None:
    made, batches = Matcher(TAPS, HIDDEN).double(), [pairs(1), pairs(2)]
    statistics = made.calibrate(batches)
    assert_close(made.center[:, 0], torch.cat([t.values for t in batches], 1).mean(1))
    scaled = made.scaled(torch.cat([made(t).tokens for t in batches], 1))
    assert_close(scaled.mean(1), torch.zeros(TAPS, dtype=torch.float64))
    assert_close(statistics, torch.cat([made(t).statistics for t in batches]))


def test_equal_texts_match_fully(matcher: Matcher) -> None:
    values = torch.randn(TAPS, 4, HIDDEN, dtype=torch.float64).repeat(1, 2, 1)
    found = matcher(Taps(values, Rows((8,), torch.tensor([0] * 4 + [1] * 4))))
    assert_close(found.tokens, torch.ones(TAPS, 8, dtype=torch.float64))
