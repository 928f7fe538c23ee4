"""Which samples make a step together, and on which device each of them is worked on.

Every sample has a *column*, drawn once for a run. A batch of any epoch has at most one sample of a column, so devices
that own whole columns have the same share of every batch, however the samples are shuffled, and each needs the cache
entries of its own samples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pac_core.examples import Example
from pac_core.shares import columns_each

POOLS = 50
LEAST_POOL = 4


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, and who works on them.

    Attributes:
        examples: the samples.
        columns: (samples,) int64 column of each, as `columns_of` gives them.
        owners: for each sample the rank of the device that works on it.
        batch_size: number of columns.
    """

    examples: Sequence[Example]
    columns: NDArray[np.int64]
    owners: NDArray[np.int64]
    batch_size: int

    def of(self, rank: int) -> list[int]:
        """Indices of the samples that ``rank`` works on."""
        return [int(i) for i in np.flatnonzero(self.owners == rank)]


def share_out(examples: Sequence[Example], batch_size: int, seed: int, shares: Sequence[float]) -> Dataset:
    """Draw columns, and give each device as many of them as its share asks for; see `columns_each`.

    Args:
        shares: of each device by rank, in any unit, such as its speed.
    """
    columns = columns_of(examples, batch_size, seed)
    ends = np.cumsum(columns_each(shares, batch_size))
    return Dataset(examples, columns, np.searchsorted(ends, columns, side="right"), batch_size)


def columns_of(examples: Sequence[Example], batch_size: int, seed: int) -> NDArray[np.int64]:
    """(samples,) column of each sample, below ``batch_size``; samples of every length are spread over all columns."""
    generator = np.random.default_rng(seed)
    order = _by_length(_lengths(examples), generator)
    rows = -(-len(order) // batch_size)
    drawn = generator.permuted(np.tile(np.arange(batch_size), (rows, 1)), axis=1).reshape(-1)[: len(order)]
    columns = np.empty(len(order), np.int64)
    columns[order] = drawn
    return columns


def epoch_batches(data: Dataset, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the batches of an epoch, by seed and epoch: similar lengths together, one sample of a column in each.

    Each column is sorted by length, and shuffled inside short runs of it: random enough to learn from, with little
    padding. Then the batches are shuffled.
    """
    generator = np.random.default_rng((seed, epoch))
    lengths = _lengths(data.examples)
    rows = int(np.bincount(data.columns, minlength=1).max(initial=0))
    pool = max(LEAST_POOL, -(-rows // POOLS))
    offset = int(generator.integers(pool))
    table = np.full((rows, data.batch_size), -1, np.int64)
    for column in range(data.batch_size):
        own = np.flatnonzero(data.columns == column)
        own = own[_by_length(lengths[own], generator)]
        pools = (np.arange(len(own)) + offset) // pool
        table[: len(own), column] = own[np.lexsort((generator.random(len(own)), pools))]
    batches = [row[row >= 0].tolist() for row in table]
    generator.shuffle(batches)
    return batches


def _lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([len(example) for example in examples], np.int64)


def _by_length(lengths: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices, the longest first, equal ones in random order."""
    order = generator.permutation(len(lengths))
    return order[np.argsort(-lengths[order], kind="stable")]
