"""Every batch of every epoch is shared out alike, and hold texts of like length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.batches import Dataset, epoch_batches, share_out
from pac_core.examples import Example, Segment
from pac_core.shares import columns_each


def samples(lengths: list[int]) -> list[Example]:
    return [Example((Segment("encoder", np.zeros(length, np.int32)),), 0) for length in lengths]


def batches(data: Dataset, epoch: int) -> list[list[int]]:
    return epoch_batches(data, 3, epoch)


SHARES = st.lists(st.floats(0.1, 10), min_size=1, max_size=6)


@given(lengths=st.lists(st.integers(1, 40), max_size=200), size=st.integers(1, 17), shares=SHARES)
@settings(deadline=None, max_examples=60)
def test_an_epoch_has_every_sample_once_and_shares_every_batch_alike(
    lengths: list[int], size: int, shares: list[float]
) -> None:
    data = share_out(samples(lengths), size, 7, shares)
    assert sorted(i for rank in range(len(shares)) for i in data.of(rank)) == list(range(len(lengths)))
    for epoch in (1, 2):
        found = batches(data, epoch)
        assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
        assert len(found) == -(-len(lengths) // size)
        assert sum(len(batch) != size for batch in found) <= 1
        for batch in found:
            assert len({data.columns[i] for i in batch}) == len(batch)
            if len(batch) == size:
                own = [sum(int(data.owners[i] == rank) for i in batch) for rank in range(len(shares))]
                assert own == columns_each(shares, size).tolist()


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_a_batch_has_little_padding(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(5, 60, 2000).tolist()
    data = share_out(samples(lengths), 16, seed, [1.0])
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches(data, 1))
    assert padded < 1.1 * sum(lengths)


def test_samples_meet_others_in_every_epoch() -> None:
    data = share_out(samples([9] * 600), 8, 0, [1.0])
    mates = [{i for batch in batches(data, epoch) if 5 in batch for i in batch} for epoch in range(20)]
    assert len(set.union(*mates)) > 60
    assert batches(data, 4) == batches(data, 4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_samples(count: int) -> None:
    data = share_out(samples([4] * count), 8, 0, [1.0, 1.0, 1.0])
    assert sorted(i for batch in batches(data, 1) for i in batch) == list(range(count))
