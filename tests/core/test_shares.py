"""Shares by speed: alike devices have equal ones, and no other split of a batch is done sooner."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.shares import ALIKE, columns_each, evened, parts_of

SPEEDS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)


@given(SPEEDS, st.floats(1e-6, 1e12))
@settings(deadline=None, max_examples=60)
def test_devices_of_nearly_the_same_speed_count_as_equally_fast(speeds: list[float], unit: float) -> None:
    found = evened(speeds)
    assert max(found) == pytest.approx(1.0)
    assert found == pytest.approx(evened([speed * unit for speed in speeds]))
    assert evened(speeds[::-1]) == pytest.approx(found[::-1])
    for own, speed in zip(found, speeds):
        run = [other for other, share in zip(speeds, found) if share == own]
        assert min(run) >= ALIKE * max(run)
        assert speed in run
    assert sorted(zip(speeds, found)) == sorted(zip(speeds, found), key=lambda each: (each[1], each[0]))


@given(st.lists(st.floats(0.9, 1.1), min_size=1, max_size=40), st.integers(1, 64))
@settings(deadline=None, max_examples=60)
def test_what_measuring_varies_by_does_not_count(speeds: list[float], batch: int) -> None:
    size = len(speeds)
    ends = np.round(np.arange(size + 1) * batch / size)
    assert columns_each(evened(speeds), batch).tolist() == np.diff(ends).tolist()
    assert parts_of(evened(speeds), batch).tolist() == [pytest.approx(1 / size)] * size


def test_a_slow_kind_of_device_does_not_change_how_others_share() -> None:
    shares = evened([100.0, 9.0, 96.0, 10.0])
    assert shares == [1.0, 9.5 / 98, 1.0, 9.5 / 98]
    assert columns_each(shares, 32).tolist() == [15, 1, 15, 1]
    assert parts_of(shares, 33).tolist() == [15.5 / 33, 1 / 33, 15.5 / 33, 1 / 33]


@given(SPEEDS, st.integers(1, 64))
@settings(deadline=None, max_examples=60)
def test_no_row_would_be_done_sooner_elsewhere(speeds: list[float], batch: int) -> None:
    rows = columns_each(speeds, batch)
    assert rows.sum() == batch
    assert (rows >= 0).all()
    assert ((rows + 1) / speeds).min() >= (rows / speeds).max()
    parts = parts_of(evened(speeds), batch)
    assert parts.sum() == pytest.approx(1.0)


@given(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=3), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_no_other_split_is_done_sooner(speeds: list[float], batch: int) -> None:
    def done(rows: Sequence[int]) -> float:
        return max(own / speed for own, speed in zip(rows, speeds))

    splits = (rows for rows in product(range(batch + 1), repeat=len(speeds)) if sum(rows) == batch)
    assert done(columns_each(speeds, batch).tolist()) == pytest.approx(min(map(done, splits)))
