"""How entries travel to their owners, against counting them one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Cluster, DeviceProfile, Link, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.planning import entries
from pac_core.planning.cost import costs, places
from pac_core.planning.entries import Spread, owned_by, spread_of
from pac_core.runtime import spread
from pac_core.runtime.routes import share_of
from pac_core.testing.scheduler import JOB, LAYER, MIB

PLAN = Plan(
    (StagePlan({"one": (0, 1)}, ("d0", "d1"), (2, 4)), StagePlan({"one": (1, 4)}, ("d2", "d3", "d4"), (3, 2, 1))), 4
)

PROFILE = Profile({"one": (replace(LAYER, gradient_bytes=MIB),) * 4}, {})

SLICES = [places(PROFILE, stage) for stage in PLAN.stages]

NAMES = [f"d{i}" for i in range(5)]


def found(samples: int = 300, *, trained: bool = False) -> Spread:
    return spread_of(PLAN, costs(PROFILE, JOB), SLICES, samples, 30.0, owned_by(PLAN, cluster(), 24), trained=trained)


MEGABYTE_A_SECOND = Link(8e6, 0.0)


def cluster(link: Link = MEGABYTE_A_SECOND, **links: Any) -> Cluster:
    return Cluster(tuple(DeviceProfile(name, 1e9, MIB) for name in NAMES), default=link, **links)


def test_each_owner_is_sent_what_others_have_made_of_its_samples() -> None:
    """Samples of every row of a micro-batch belong to every device equally often."""
    counted = np.zeros((5, 5))
    for row in range(6):
        for owner in range(5):
            for rank in range(5):
                first, last = share_of(PLAN, rank, 6)
                if first <= row < last and rank != owner:
                    layers = SLICES[PLAN.place(rank)[0]]
                    counted[rank, owner] += 10 * 30 * LAYER.tap_bytes * (layers[1] - layers[0])
    assert found().messages == pytest.approx(counted)
    assert found().sent == pytest.approx(counted.sum())


def test_owners_are_ranked_as_in_the_cluster_and_own_by_their_speeds() -> None:
    fast = Cluster(tuple(DeviceProfile(name, 1e9 * (1 + 9 * (name == "d3")), MIB) for name in reversed(NAMES)))
    owned = owned_by(PLAN, fast, 28)
    assert owned.parts.tolist() == [2 / 28] * 3 + [20 / 28] + [2 / 28]
    assert owned.rows.tolist() == [4, *[3] * 19, 2, 1, 0, 0]


def test_the_first_of_each_group_sends_weights_and_moments_to_all_others() -> None:
    state = found(trained=True).state
    expected = np.zeros((5, 5))
    expected[0, 2:] = 3 * MIB
    expected[2, :2] = 9 * MIB
    assert state.tolist() == expected.tolist()
    assert found().state.sum() == 0


def test_chunks_are_those_of_the_runtime() -> None:
    assert entries.CHUNK_TOKENS == spread.CHUNK_TOKENS
    assert found(300).chunks == (1,) * 5  # 60 samples of 30 tokens each
    assert found(3000).chunks == (9,) * 5


def test_a_chunk_has_arrived_when_its_ports_have_done_what_came_before() -> None:
    one = Spread(np.array([[0.0, 3e6], [1e6, 0.0]]), np.zeros((2, 2)), (2, 2))
    pair = Cluster(tuple(DeviceProfile(name, 1e9, MIB) for name in "ab"), default=Link(8e6, 0.25))
    assert one.arrivals(pair, "ab").tolist() == [[0.75, 1.5], [1.75, 3.5]]
    assert one.arrivals(replace(pair, shared=True), "ab").tolist() == [[2.25, 4.5], [2.25, 4.5]]


def test_a_slow_link_holds_up_those_that_its_ends_send_to() -> None:
    messages = np.full((5, 5), 1e6) - np.diag([1e6] * 5)
    even, uneven = (
        Spread(messages, np.zeros((5, 5)), (1,) * 5).arrivals(there, NAMES)[:, 0]
        for there in (cluster(), cluster(links={("d0", "d1"): Link(2e6, 0.0)}))
    )
    assert even.tolist() == [4.0] * 5
    assert uneven.tolist() == [7.0] * 5  # d0 and d1 send three at a megabyte a second, and one in four seconds


def test_an_owner_of_little_has_its_part_while_others_still_get_theirs() -> None:
    """d0 sends d1 and d2 a chunk each, and then d2 alone."""
    there = Cluster(tuple(DeviceProfile(name, 1e9, MIB) for name in "abc"), default=MEGABYTE_A_SECOND)
    found = Spread(np.array([[0.0, 1e6, 3e6], [0.0] * 3, [0.0] * 3]), np.zeros((3, 3)), (1, 1, 3))
    assert found.arrivals(there, "abc")[:, -1].tolist() == [0.0, 2.0, 4.0]
    assert found.arrivals(there, "abc")[2].tolist() == [2.0, 3.0, 4.0]


@given(
    st.lists(st.floats(0.0, 1e7), min_size=25, max_size=25),
    st.lists(st.integers(1, 6), min_size=5, max_size=5),
    st.floats(0.0, 0.01),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_chunks_come_in_order_and_no_faster_than_ports_allow(
    sizes: list[float], chunks: list[int], latency: float, shared: bool
) -> None:
    messages = np.array(sizes).reshape(5, 5) * (1 - np.eye(5))
    there = replace(cluster(Link(8e6, latency)), shared=shared)
    arrivals = Spread(messages, np.zeros((5, 5)), chunks).arrivals(there, NAMES)
    assert (np.diff(arrivals, axis=1) >= 0).all()
    assert (arrivals[:, -1] >= messages.sum(0) / 1e6 - 1e-9).all()
    assert arrivals[:, -1].max() >= messages.sum(1).max() / 1e6 - 1e-9
    assert arrivals[:, -1].max() <= messages.sum() / 1e6 + max(chunks) * latency + 1e-9
