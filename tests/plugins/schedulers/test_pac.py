"""The paper's planner: the suite, and equations 2 to 6 against every plan there is, on tiny cases."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Cluster, DeviceProfile, Link, Profile
from pac_core.errors import BadInput
from pac_core.planning.cost import Costs, costs
from pac_core.testing import SchedulerSuite
from pac_core.testing.scheduler import JOB, LAYER, MIB, STREAMS, a_cluster, a_profile
from pac_plugins.schedulers import make_pac
from pac_plugins.schedulers.pac import Balanced, balanced, mini_batch_s


class TestPac(SchedulerSuite):
    factory = staticmethod(make_pac)

    def test_one_group_is_enough_where_the_model_fits(self) -> None:
        plan = self.plan(a_profile(STREAMS["one"]), a_cluster(1.0, 1.0, 1.0, 1.0))
        assert [len(stage.devices) for stage in plan.stages] == [4]
        assert plan.stages[0].rows == (2, 2, 2, 2)

    def test_stages_are_made_where_it_does_not(self) -> None:
        plan = self.plan(a_profile(STREAMS["one"]), a_cluster(1.0, 1.0, 1.0, 1.0, memory_bytes=70 * MIB))
        assert (len(plan.stages), plan.size) == (2, 4)

    def test_fewer_micro_batches_are_in_flight_where_memory_is_short(self) -> None:
        """The recursion counts one; more would not fit."""
        profile = a_profile(STREAMS["one"])
        kept = Profile(
            {s: tuple(replace(layer, kept_bytes=1 << 15) for layer in held) for s, held in profile.layers.items()},
            profile.embedding_bytes,
            profile.head_bytes,
        )
        plan = self.plan(kept, a_cluster(1.0, 1.0, memory_bytes=160 * MIB))
        assert (len(plan.stages), plan.in_flight) == (2, 1)
        assert plan.most_in_flight(0) == 1


@st.composite
def tiny_cases(draw: Any) -> tuple[Profile, Cluster, int]:
    """At most 5 layers of any costs, 4 devices of any speeds and memory, and rows of a micro-batch."""
    layers = tuple(
        replace(
            LAYER,
            flops=draw(st.integers(1, 9)) * 1e6,
            weight_bytes=draw(st.integers(1, 6)) * MIB,
            gradient_bytes=draw(st.integers(0, 2)) * MIB,
        )
        for _ in range(draw(st.integers(1, 5)))
    )
    devices = tuple(
        DeviceProfile(f"d{i}", draw(st.integers(1, 5)) * 1e9, draw(st.sampled_from([12, 20, 4096])) * MIB)
        for i in range(draw(st.integers(1, 4)))
    )
    return Profile({"one": layers}, {}), Cluster(devices, default=Link(1e8, 1e-3)), draw(st.integers(1, 6))


def every_way(found: Costs, cluster: Cluster, size: int) -> Iterator[Balanced]:
    """All cuts of the chain and of the devices' order into as many stages, with what equation 3 says of the slowest."""
    devices = cluster.devices
    for stages in range(1, min(found.layers, len(devices)) + 1):
        for cut in combinations(range(1, found.layers), stages - 1):
            for part in combinations(range(1, len(devices)), stages - 1):
                ends, marks = (*cut, found.layers), (0, *part, len(devices))
                groups = tuple(b - a for a, b in pairwise(marks))
                slowest = max(
                    stage_s(found, devices[a:b], first, last, size)
                    for a, b, first, last in zip(marks, marks[1:], (0, *cut), ends)
                )
                yield Balanced(ends, groups, slowest)


def stage_s(found: Costs, members: tuple[DeviceProfile, ...], first: int, last: int, size: int) -> float:
    """T of equation 3."""
    if size < len(members):
        return inf  # a device would have no row
    rows = -(-size // len(members))
    if any(found.bytes(first, last, rows, 1) > member.memory_bytes for member in members):
        return inf
    return max(found.seconds(member, first, last, size / len(members)).both for member in members)


@given(tiny_cases())
@settings(deadline=None, max_examples=150)
def test_the_recursion_finds_the_best_of_all_plans_for_each_number_of_stages(case: Any) -> None:
    profile, cluster, size = case
    found = costs(profile, JOB)
    ways = list(every_way(found, cluster, size))
    made = {len(plan.ends): plan for plan in balanced(found, cluster.devices, size)}
    for stages in range(1, min(found.layers, len(cluster.devices)) + 1):
        best = min(way.slowest for way in ways if len(way.ends) == stages)
        if best == inf:
            assert stages not in made
            continue
        plan = made[stages]
        assert plan.slowest == pytest.approx(best)
        same = next(way for way in ways if (way.ends, way.groups) == (plan.ends, plan.groups))
        assert same.slowest == pytest.approx(best)


@given(tiny_cases())
@settings(deadline=None, max_examples=50)
def test_of_those_plans_the_shortest_mini_batch_is_chosen(case: Any) -> None:
    profile, cluster, size = case
    found = costs(profile, JOB)
    job = replace(JOB, micro_batch_size=size)
    made = list(balanced(found, cluster.devices, size))
    count = -(-JOB.batch_size // size)
    if not made:
        with pytest.raises(BadInput, match=r"are missing|cannot be shared"):
            make_pac().plan(profile, cluster, job)
        return
    least = min(made, key=lambda plan: mini_batch_s(found, cluster, plan, size, count))
    plan = make_pac().plan(profile, cluster, job)
    assert tuple(len(stage.devices) for stage in plan.stages) == least.groups
    assert tuple(stage.layers["one"][1] for stage in plan.stages) == least.ends


def test_the_estimate_is_that_of_equations_4_to_6() -> None:
    """Two stages of one device: L_b = e_f(1) + c_f(1), L_e = M e(2), L_n = e_b(1) + c_b(1); by hand."""
    profile = Profile({"one": (replace(LAYER, pair_flops=0.0, flops=1e6, side_flops=3e6),) * 2}, {})
    job = replace(JOB, mean_length=10.0)
    cluster = Cluster((DeviceProfile("a", 1e9, MIB), DeviceProfile("b", 2e9, MIB)), default=Link(8e6, 0.5))
    plan = Balanced((1, 2), (1, 1), 0.0)
    forward, backward = 4 * 10 * 2e6, 4 * 10 * 2e6  # four rows of ten tokens: backbone and a third of the side layer
    sent, returned = 4 * 10 * (1024 + 256), 4 * 10 * 256
    expected = forward / 1e9 + 0.5 + sent / 1e6 + 3 * (forward + backward) / 2e9 + backward / 1e9 + 0.5 + returned / 1e6
    assert mini_batch_s(costs(profile, job), cluster, plan, 4, 3) == pytest.approx(expected)


def test_a_large_cluster_is_planned_quickly() -> None:
    profile = a_profile((replace(STREAMS["one"][0], layers=48),))
    plan = make_pac().plan(profile, a_cluster(*[1.0, 2.0] * 8), JOB)
    assert plan.size == 16
