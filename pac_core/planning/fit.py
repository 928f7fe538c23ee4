"""From seconds that were measured to a device's profile: for each pass what it takes at least, and a rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pac_core.contracts.cluster import DeviceProfile, Job, Pace, Paces, Profile, StreamPaces
from pac_core.planning.cost import FORWARD, Costs, costs, slice_of
from pac_core.planning.measure import Measured, MeasuredPass
from pac_core.planning.probe import PassName
from pac_core.planning.profile_file import FittedPass

FASTEST = 1e18
"""Operations a second of what takes no longer for more of them."""

ROUNDS = 10
CLOSE = 0.02
"""Relative error below which all points weigh alike; beyond, the less the farther away they are."""


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
    """The pace with the least sum of relative errors, nearly. Neither its seconds nor its seconds an operation are
    negative.

    Args:
        points: at least one, all of which took some time.
    """
    operations = np.array([point.operations for point in points])
    seconds = np.array([point.seconds for point in points])
    columns = np.stack([np.ones_like(seconds), operations], 1) / seconds[:, None]
    weights = np.ones_like(seconds)
    for _ in range(ROUNDS):
        found = _least_squares(columns * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(columns @ found - 1), CLOSE))
    fixed, each = map(float, found)
    pace = Pace(min(1 / each, FASTEST) if each > 0 else FASTEST, fixed)
    errors = [abs(pace.seconds(point.operations) / point.seconds - 1) for point in points]
    return Fit(pace, statistics.median(errors), max(errors))


def _least_squares(columns: NDArray[np.float64], goal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two weights, none negative, with which the columns (points, 2) add up to the goal as nearly as can be."""
    both: NDArray[np.float64] = np.linalg.lstsq(columns, goal, rcond=None)[0].astype(np.float64)
    if (both >= 0).all():
        return both
    alone = np.diag(np.maximum(columns.T @ goal, 0.0) / np.maximum((columns**2).sum(0), 1e-300))
    return min(alone, key=lambda weights: float(((columns @ weights - goal) ** 2).sum()))


def fit_device(
    name: str, measured: Measured, sample: Profile, memory_bytes: int
) -> tuple[DeviceProfile, tuple[FittedPass, ...]]:
    """A device's profile from what it has measured, and how well that agrees.

    Args:
        sample: costs of the model's sample that was timed.
        memory_bytes: that a run may take.
    """
    fits = {(one.stream, one.name): fit_pace(_timed(one, sample)) for one in measured.passes}
    target = list(sample.layers)[-1]

    def pace(stream: str, name: PassName) -> Pace:
        return fits[stream, name].pace if (stream, name) in fits else NOTHING

    paces = Paces(
        tuple(
            StreamPaces(
                stream,
                pace(stream, "backbone"),
                pace(stream, "side forward"),
                pace(stream, "side backward"),
                pace(stream, "cached"),
            )
            for stream in sample.layers
        ),
        pace(target, "head forward"),
        pace(target, "head backward"),
    )
    first = next(one for one in measured.passes if one.name == "backbone")
    fastest = max(point.operations / point.seconds for point in _timed(first, sample))
    device = DeviceProfile(
        name,
        fastest,
        memory_bytes,
        disk_bytes_per_s=measured.read_bytes_per_s,
        update_bytes_per_s=measured.update_bytes_per_s,
        write_bytes_per_s=measured.write_bytes_per_s,
        step_s=measured.step_s,
        paces=paces,
    )
    return device, tuple(_fitted(one, fits[one.stream, one.name]) for one in measured.passes)


NOTHING = Pace(FASTEST)
"""Of layers that the side network does not read."""


def _fitted(one: MeasuredPass, fit: Fit) -> FittedPass:
    return FittedPass(one.stream, one.name, fit.median_error, fit.largest_error, one.points)


def _timed(one: MeasuredPass, sample: Profile) -> list[Timed]:
    """The points of a pass with the operations that the cost model counts for them."""
    return [
        Timed(point.rows * _operations(costs(sample, _job(point.tokens)), one), max(point.seconds, 1e-9))
        for point in one.points
    ]


def _job(tokens: int) -> Job:
    return Job(1, 1, tokens, tokens)


def _operations(found: Costs, one: MeasuredPass) -> float:
    """Operations of a pass over one row, in a layer or in the head."""
    if one.name.startswith("head"):
        return found.head_flops
    places = [place for place, stream in enumerate(found.streams) if stream == one.stream]
    side = max(slice_of(found.side_flops, place, place + 1) for place in places)
    if one.name == "backbone":
        first = places[0]
        own = FORWARD * slice_of(found.side_flops, first, first + 1)
        return slice_of(found.forward_flops, first, first + 1) - own
    return {"side forward": FORWARD, "side backward": 1 - FORWARD, "cached": 1.0}[one.name] * side
