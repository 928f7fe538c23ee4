"""The scheduler for devices that differ: the suite, and random clusters against the best of all plans."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link, Profile
from pac_core.errors import BadInput
from pac_core.planning.simulate import Timeline, simulate
from pac_core.testing import SchedulerSuite
from pac_core.testing.scheduler import JOB, LAYER, MIB, STREAMS, a_cluster, a_profile
from pac_plugins.schedulers import (
    make_data_parallel,
    make_exhaustive,
    make_hetero,
    make_pac,
    make_pipeline,
    make_single,
)
from pac_plugins.schedulers.exhaustive import faster_plan

Case = tuple[Profile, Cluster, Job]

NEAR = 1.02


class TestHetero(SchedulerSuite):
    factory = staticmethod(make_hetero)

    def test_a_fast_device_in_a_poor_place_is_used_well(self) -> None:
        job = replace(JOB, batch_size=16, micro_batch_size=8)
        profile, cluster = a_profile((replace(STREAMS["one"][0], layers=6),)), a_cluster(1.0, 6.0, 1.0, 2.0)
        theirs = simulate(make_pac().plan(profile, cluster, job), profile, cluster, job)
        assert theirs.step_s > 1.3 * simulate(self.plan(profile, cluster, job), profile, cluster, job).step_s

    def test_weights_are_held_as_int8_where_nothing_else_fits(self) -> None:
        profile = a_profile(STREAMS["one"])
        layers = {s: tuple(replace(x, int8_bytes=x.weight_bytes // 4) for x in xs) for s, xs in profile.layers.items()}
        small, roomy = (a_cluster(1.0, 1.0, memory_bytes=room * MIB) for room in (50, 500))
        with pytest.raises(BadInput):
            self.plan(profile, small)
        both = replace(profile, layers=layers)
        found = self.plan(both, small)
        assert found.weights == "int8"
        assert not simulate(found, both, small, JOB).out_of_memory
        assert self.plan(both, roomy).weights == "native"

    def test_a_device_behind_a_slow_link_is_left_out(self) -> None:
        cluster = a_cluster(1.0, 1.0, 1.0)
        slow = {("d0", "d2"): Link(1e3, 1.0), ("d1", "d2"): Link(1e3, 1.0), ("d0", "d1"): Link(1e9, 1e-4)}
        plan = self.plan(a_profile(STREAMS["one"]), replace(cluster, links=slow))
        assert {name for stage in plan.stages for name in stage.devices} == {"d0", "d1"}

    def test_a_large_cluster_is_planned_by_orders_of_devices(self) -> None:
        profile = a_profile((replace(STREAMS["one"][0], layers=24),))
        cluster, job = a_cluster(*[1.0, 2.0, 4.0] * 4, memory_bytes=90 * MIB), replace(JOB, micro_batch_size=None)
        own = simulate(self.plan(profile, cluster, job), profile, cluster, job)
        assert not own.out_of_memory
        assert own.step_s < simulate(make_pac().plan(profile, cluster, job), profile, cluster, job).step_s


@st.composite
def cases(draw: Any) -> Case:
    """At most 6 layers and 4 devices, alike or not, with memory for all, a part or next to nothing."""
    layers = tuple(
        replace(
            LAYER,
            flops=draw(st.integers(1, 9)) * 1e6,
            weight_bytes=draw(st.integers(1, 6)) * MIB,
            gradient_bytes=draw(st.integers(0, 1)) * MIB,
            kept_bytes=draw(st.sampled_from([1 << 12, 1 << 15])),
        )
        for _ in range(draw(st.integers(1, 6)))
    )
    memory = st.sampled_from([10, 14, 24, 4096])
    first = DeviceProfile("d0", draw(st.integers(1, 5)) * 1e9, draw(memory) * MIB)
    alike = draw(st.booleans())
    devices = [first] + [
        replace(first, name=f"d{i}")
        if alike
        else DeviceProfile(
            f"d{i}", draw(st.integers(1, 5)) * 1e9, draw(memory) * MIB, draw(st.sampled_from([None, 2e9]))
        )
        for i in range(1, draw(st.integers(1, 4)))
    ]
    pairs = draw(st.sets(st.sampled_from([("d0", "d1"), ("d0", "d2"), ("d2", "d3")])))
    links = {pair: Link(draw(st.sampled_from([1e7, 1e9])), 1e-3) for pair in sorted(pairs)}
    link = Link(draw(st.sampled_from([2e7, 1e9])), 1e-3)
    batch = draw(st.sampled_from([4, 8, 12]))
    size = draw(st.sampled_from([None, 2, 3, 4]))
    cluster = Cluster(tuple(devices), links, link, draw(st.booleans()))
    return Profile({"one": layers}, {}), cluster, Job(batch, size, 30.0, 64)


def timeline(make: Any, case: Case) -> Timeline | None:
    """What the plan of a scheduler takes; None if it has none."""
    profile, cluster, job = case
    try:
        return simulate(make().plan(profile, cluster, job), profile, cluster, job)
    except BadInput:
        return None


@given(cases())
@settings(deadline=None, max_examples=40)
def test_no_plan_is_more_than_two_percent_faster(case: Case) -> None:
    own = timeline(make_hetero, case)
    if own is None:
        assert faster_plan(*case, float("inf")) is None
        return
    assert not own.out_of_memory
    assert faster_plan(*case, own.step_s / NEAR) is None


@given(cases())
@settings(deadline=None, max_examples=40)
def test_no_other_scheduler_is_faster(case: Case) -> None:
    own = timeline(make_hetero, case)
    for make in (make_pac, make_data_parallel, make_pipeline, make_single):
        other = timeline(make, case)
        assert other is None or (own is not None and own.step_s <= other.step_s * (1 + 1e-9))


@pytest.mark.parametrize("make", [make_hetero, make_exhaustive, make_pac])
def test_the_nearest_change_that_would_fit_is_told(make: Any) -> None:
    profile, cluster = a_profile(STREAMS["one"]), a_cluster(1.0, 2.0, memory_bytes=40 * MIB)
    with pytest.raises(BadInput, match=r"are missing; [\d,]+ MiB more on 'd\d' would fit$") as refused:
        make().plan(profile, cluster, replace(JOB, micro_batch_size=2))
    text = str(refused.value).rpartition("; ")[2].split()
    more, name = int(text[0].replace(",", "")) * MIB, text[4].strip("'")

    def widened(by: int) -> Cluster:
        devices = (replace(d, memory_bytes=d.memory_bytes + by * (d.name == name)) for d in cluster.devices)
        return replace(cluster, devices=tuple(devices))

    make().plan(profile, widened(more), replace(JOB, micro_batch_size=2))
    with pytest.raises(BadInput, match="are missing"):
        make().plan(profile, widened(more - 2 * MIB), replace(JOB, micro_batch_size=2))


@pytest.mark.parametrize("make", [make_hetero, make_exhaustive, make_pac])
def test_a_smaller_micro_batch_is_offered_if_it_fits(make: Any) -> None:
    layer = replace(LAYER, kept_bytes=1 << 16)
    profile, cluster = Profile({"one": (layer,) * 2}, {}), a_cluster(1.0, memory_bytes=40 * MIB)
    with pytest.raises(BadInput, match=r"are missing; a micro-batch of 2 rows would fit$"):
        make().plan(profile, cluster, replace(JOB, micro_batch_size=8))
    make().plan(profile, cluster, replace(JOB, micro_batch_size=2))
