"""The oracle: the suite, and that nothing is better."""

from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Cluster, DeviceProfile, Link, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import costs
from pac_core.planning.simulate import simulate
from pac_core.testing import SchedulerSuite
from pac_core.testing.scheduler import JOB, LAYER, MIB, STREAMS, a_cluster, a_profile
from pac_plugins.schedulers import make_data_parallel, make_exhaustive, make_pac, make_pipeline, make_single
from pac_plugins.schedulers.rows import share_rows

MINE = replace(JOB, batch_size=6, micro_batch_size=3)


class TestExhaustive(SchedulerSuite):
    factory = staticmethod(make_exhaustive)
    clusters = ((1.0,), (1.0, 1.0), (3.0, 1.0, 2.0))

    def test_large_clusters_are_refused(self) -> None:
        with pytest.raises(BadInput, match="at most 8 devices"):
            self.plan(a_profile(STREAMS["one"]), a_cluster(*[1.0] * 9))


@st.composite
def tiny_cases(draw: Any, most: int = 3) -> tuple[Profile, Cluster]:
    layers = tuple(
        replace(
            LAYER,
            flops=draw(st.integers(1, 9)) * 1e6,
            weight_bytes=draw(st.integers(1, 6)) * MIB,
            gradient_bytes=draw(st.integers(0, 1)) * MIB,
            kept_bytes=draw(st.sampled_from([1 << 12, 1 << 14])),
        )
        for _ in range(draw(st.integers(1, 4)))
    )
    devices = tuple(
        DeviceProfile(f"d{i}", draw(st.integers(1, 5)) * 1e9, draw(st.sampled_from([14, 24, 4096])) * MIB)
        for i in range(draw(st.integers(1, most)))
    )
    links = {("d0", "d1"): Link(draw(st.sampled_from([1e6, 1e9])), 1e-3)} if len(devices) > 1 else {}
    return Profile({"one": layers}, {}), Cluster(devices, links, Link(1e8, 1e-3), draw(st.booleans()))


def every_plan(profile: Profile, cluster: Cluster) -> list[Plan]:
    """All orders of any devices, in groups, with all cuts and all ways to split three rows."""
    layers, found = len(profile.layers["one"]), []
    for count in range(1, len(cluster.devices) + 1):
        for order in permutations(device.name for device in cluster.devices):
            for stages in range(1, min(count, layers) + 1):
                for marks in combinations(range(1, count), stages - 1):
                    groups = [order[a:b] for a, b in zip((0, *marks), (*marks, count))]
                    for cut in combinations(range(1, layers), stages - 1):
                        found += made(groups, list(zip((0, *cut), (*cut, layers))))
    return found


def made(groups: list[tuple[str, ...]], ranges: list[tuple[int, int]]) -> list[Plan]:
    plans: list[tuple[StagePlan, ...]] = [()]
    for group, held in zip(groups, ranges):
        splits = {1: [(3,)], 2: [(1, 2), (2, 1)], 3: [(1, 1, 1)]}[len(group)]
        plans = [(*plan, StagePlan({"one": held}, group, rows)) for plan in plans for rows in splits]
    limits = [None, *range(1, min(len(groups), 2))]
    return [Plan(plan, 2, in_flight=limit) for plan in plans for limit in limits]


@given(tiny_cases())
@settings(deadline=None, max_examples=40)
def test_no_plan_at_all_is_faster(case: Any) -> None:
    profile, cluster = case
    lines = [simulate(plan, profile, cluster, MINE) for plan in every_plan(profile, cluster)]
    times = [line.step_s for line in lines if not line.out_of_memory]
    if not times:
        with pytest.raises(BadInput, match="are missing"):
            make_exhaustive().plan(profile, cluster, MINE)
        return
    found = simulate(make_exhaustive().plan(profile, cluster, MINE), profile, cluster, MINE)
    assert not found.out_of_memory
    assert found.step_s <= min(times) * (1 + 1e-9)


@pytest.mark.parametrize("make", [make_single, make_data_parallel, make_pipeline, make_pac])
@given(case=tiny_cases(4))
@settings(deadline=None, max_examples=25)
def test_no_other_scheduler_is(make: Any, case: Any) -> None:
    profile, cluster = case
    job = replace(JOB, batch_size=8, micro_batch_size=4)
    try:
        other = simulate(make().plan(profile, cluster, job), profile, cluster, job)
    except BadInput:
        return
    assert not other.out_of_memory
    found = simulate(make_exhaustive().plan(profile, cluster, job), profile, cluster, job)
    assert found.step_s <= other.step_s * (1 + 1e-9)


def test_rows_go_where_they_are_done_first_as_memory_allows() -> None:
    found = costs(Profile({"one": (replace(LAYER, kept_bytes=1 << 14),)}, {}), JOB)
    fast, slow = DeviceProfile("fast", 3e9, 1 << 40), DeviceProfile("slow", 1e9, 1 << 40)
    assert share_rows(found, [fast, slow], 0, 1, 8, 1) == (6, 2)
    small = replace(fast, memory_bytes=round(found.bytes(0, 1, 4, 1)))
    assert share_rows(found, [small, slow], 0, 1, 8, 1) == (4, 4)
    assert share_rows(found, [small, small], 0, 1, 9, 1) is None
    assert share_rows(found, [small, slow], 0, 1, 1, 1) is None


def test_mixed_devices_in_a_poor_order_gain() -> None:
    """The fixed order and even splits of the paper's planner cost time where devices differ."""
    profile, cluster = a_profile((replace(STREAMS["one"][0], layers=6),)), a_cluster(1.0, 6.0, 1.0, 2.0)
    job = replace(JOB, batch_size=16, micro_batch_size=8)
    best = simulate(make_exhaustive().plan(profile, cluster, job), profile, cluster, job).step_s
    theirs = simulate(make_pac().plan(profile, cluster, job), profile, cluster, job).step_s
    assert theirs > 1.3 * best
