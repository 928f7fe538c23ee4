"""How much of every batch each device works on where all train the whole side network: as much as it is fast.

Runs and the simulator share out alike, by what is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.75
"""Part of the fastest device's speed from which on one counts as equally fast. A machine that has other things to do
measures its own speed about that far off. By equal shares two devices so alike lose less than a sixth of a step."""


def evened(speeds: Sequence[float]) -> list[float]:
    """Speeds as shares go by: relative to the fastest, and the same for devices that are nearly alike.

    From the fastest downwards, a device that has at least `ALIKE` of the speed of the first one of a run of devices
    belongs to it, and all of a run count as fast as they are on average.

    Args:
        speeds: of each device, above 0, in any unit.

    >>> evened([12.0, 2.0, 10.0])
    [1.0, 0.18181818181818182, 1.0]
    """
    runs: list[list[int]] = []
    for rank in sorted(range(len(speeds)), key=lambda rank: -speeds[rank]):
        if not runs or speeds[rank] < ALIKE * speeds[runs[-1][0]]:
            runs.append([])
        runs[-1].append(rank)
    means = [sum(speeds[rank] for rank in run) / len(run) for run in runs]
    by_rank = {rank: mean / means[0] for run, mean in zip(runs, means) for rank in run}
    return [by_rank[rank] for rank in range(len(speeds))]


def columns_each(shares: Sequence[float], batch_size: int) -> NDArray[np.int64]:
    """(devices,) rows of a whole batch that each takes, so that the last to be done is done as early as can be.

    They are in proportion to ``shares``, rounded; then rows go from whoever is done last to whoever would be done
    sooner with one more. Where none of these moves helps, no other split is better. A device far slower than others
    may get none.

    Args:
        shares: of each device, above 0, in any unit, such as its speed.

    >>> columns_each([1.0, 1.0, 0.2], 16).tolist()
    [7, 8, 1]
    >>> columns_each([1.0, 0.05], 16).tolist()
    [16, 0]
    """
    ends = np.round(np.cumsum(shares) / np.sum(shares) * batch_size)
    rows: NDArray[np.int64] = np.diff(ends, prepend=0.0).astype(np.int64)
    while ((rows + 1) / shares).min() < (rows / shares).max():
        giver, taker = (rows / shares).argmax(), ((rows + 1) / shares).argmin()
        rows[giver] -= 1
        rows[taker] += 1
    return rows


def parts_of(shares: Sequence[float], batch_size: int) -> NDArray[np.float64]:
    """(devices,) part of all samples that each works on, as `columns_each` splits batches. Equally fast devices count
    as having the same, though one may have a row more than another."""
    _, same = np.unique(np.asarray(shares), return_inverse=True)
    found: NDArray[np.float64] = np.bincount(same, columns_each(shares, batch_size)) / np.bincount(same) / batch_size
    return found[same]
