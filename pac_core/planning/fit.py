"""From seconds that were measured to a pace: what a pass takes however small it is, and a rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pac_core.contracts.cluster import Pace

FASTEST = 1e18
"""Operations a second of what takes no longer for more of them."""


@dataclass(frozen=True)
class Timed:
    """Operations of a pass, and the seconds that it took."""

    operations: float
    seconds: float


@dataclass(frozen=True)
class Fit:
    """A pace, and its relative errors over the points that it was fitted to."""

    pace: Pace
    median_error: float
    largest_error: float


def fit_pace(points: Sequence[Timed]) -> Fit:
    """The pace that leaves the least relative errors, squared and summed. Neither its seconds nor its seconds an
    operation are negative.

    Args:
        points: at least one, all of which took some time.
    """
    operations = np.array([point.operations for point in points], np.float64)
    seconds = np.array([point.seconds for point in points], np.float64)
    columns = np.stack([np.ones_like(operations), operations], 1) / seconds[:, None]
    fixed, each = _least_squares(columns)
    pace = Pace(min(1 / each, FASTEST) if each > 0 else FASTEST, float(fixed))
    errors = [abs(pace.seconds(point.operations) / point.seconds - 1) for point in points]
    return Fit(pace, statistics.median(errors), max(errors))


def _least_squares(columns: np.ndarray) -> tuple[float, float]:
    """Two weights, none negative, with which the columns add up to 1 as nearly as can be."""
    ones = np.ones(len(columns))
    both, *_ = np.linalg.lstsq(columns, ones, rcond=None)
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [max(float(column @ ones) / max(float(column @ column), 1e-300), 0.0) for column in columns.T]
    left = [float(np.square(weight * column - ones).sum()) for weight, column in zip(alone, columns.T)]
    return (alone[0], 0.0) if left[0] <= left[1] else (0.0, alone[1])
