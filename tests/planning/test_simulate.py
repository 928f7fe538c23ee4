"""The simulator: against times that are known, against the runtime's own schedules and routes, and against itself."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Cluster, DeviceProfile, Link, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import all_reduce_s, costs, places
from pac_core.planning.memory import stage_bytes
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.runtime.routes import routes
from pac_core.runtime.schedule import actions_of
from pac_core.spans import by_device
from pac_core.testing.scheduler import JOB, LAYER, MIB, STREAMS, a_cluster, a_profile

FREE = Link(1e30, 0.0)
"""A link that takes no time."""


@st.composite
def plans(draw: Any, layers: int = 6) -> Plan:
    """Any plan over one stream of six layers."""
    cuts = sorted(draw(st.sets(st.integers(1, layers - 1), max_size=3)))
    size = draw(st.integers(3, 8))
    stages, names = [], iter(f"d{i}" for i in range(16))
    for first, last in pairwise([0, *cuts, layers]):
        marks = sorted(draw(st.sets(st.integers(1, size - 1), max_size=2)))
        rows = tuple(b - a for a, b in pairwise([0, *marks, size]))
        stages.append(StagePlan({"encoder": (first, last)}, tuple(next(names) for _ in rows), rows))
    schedule = draw(st.sampled_from(["1f1b", "gpipe"]))
    limit = draw(st.none() | st.integers(1, 3)) if schedule == "1f1b" else None
    return Plan(tuple(stages), draw(st.integers(1, 6)), schedule, "any", limit)


def six_layers() -> Profile:
    return a_profile((replace(STREAMS["one"][0], layers=6),))


def cluster_of(plan: Plan, shared: bool = False) -> Cluster:
    speeds = [1.0 + i % 3 for i in range(plan.size)]
    return replace(a_cluster(*speeds), shared=shared, default=Link(1e7, 1e-3))


def played(plan: Plan, shared: bool = False) -> Timeline:
    job = replace(JOB, batch_size=plan.micro_batches * plan.micro_batch_size)
    return simulate(plan, six_layers(), cluster_of(plan, shared), job)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@given(stages=st.integers(1, 5), micro=st.integers(1, 8))
def test_equal_stages_on_free_links_take_micro_batches_and_stages_less_one(
    schedule: Any, stages: int, micro: int
) -> None:
    plan = Plan(tuple(StagePlan({"one": (i, i + 1)}, (f"d{i}",), (2,)) for i in range(stages)), micro, schedule)
    profile = Profile({"one": (LAYER,) * stages}, {})
    cluster = Cluster(tuple(DeviceProfile(f"d{i}", 1e9, 1 << 40) for i in range(stages)), default=FREE)
    job = replace(JOB, batch_size=2 * micro)
    each = costs(profile, job).seconds(cluster.devices[0], 0, 1, 2)
    assert simulate(plan, profile, cluster, job).step_s == pytest.approx((micro + stages - 1) * each.both)


@given(plans())
@settings(deadline=None)
def test_devices_do_what_the_runtimes_schedule_says_one_after_the_other(plan: Plan) -> None:
    found = by_device(played(plan).spans)
    for number, stage in enumerate(plan.stages):
        expected = [(a.kind, a.micro) for a in actions_of(plan, number, plan.micro_batches)]
        for name in stage.devices:
            own = [span for span in found[name] if span.kind != "reduce"]
            assert [(span.kind, span.micro_batch) for span in own] == expected
            assert all(one.end_s <= other.start_s + 1e-12 for one, other in pairwise(own))


@given(plans(), st.booleans())
@settings(deadline=None)
def test_messages_follow_the_runtimes_routes_and_nothing_starts_before_its_own_are_there(
    plan: Plan, shared: bool
) -> None:
    found = played(plan, shared)
    names = [device for stage in plan.stages for device in stage.devices]
    crossing = costs(six_layers(), JOB).crossings
    for rank, name in enumerate(names):
        number, _ = plan.place(rank)
        routed = routes(plan, rank, number + 1, plan.micro_batch_size)
        place = places(six_layers(), plan.stages[number])[1]
        for micro in range(plan.micro_batches):
            sent = {
                t.target: t.size
                for t in found.transfers
                if (t.source, t.kind, t.micro_batch) == (name, "forward", micro)
            }
            assert sent == {names[r.rank]: pytest.approx((r.last - r.first) * crossing[place].forward) for r in routed}
    for t in found.transfers:
        begun = next(s for s in found.spans if (s.device, s.kind, s.micro_batch) == (t.target, t.kind, t.micro_batch))
        assert t.asked_s <= t.start_s < t.end_s <= begun.start_s + 1e-12


@given(plans(), st.booleans())
@settings(deadline=None)
def test_nobody_sends_or_receives_two_messages_at_once(plan: Plan, shared: bool) -> None:
    transfers = played(plan, shared).transfers
    groups = [list(transfers)] if shared else []
    for name in {t.source for t in transfers}:
        groups.append([t for t in transfers if t.source == name])
        groups.append([t for t in transfers if t.target == name])
    for group in groups:
        busy = sorted((t.start_s, t.start_s + 8 * t.size / 1e7) for t in group if {t.source, t.target} != {"d0", "d1"})
        assert all(one[1] <= other[0] + 1e-9 for one, other in pairwise(busy))


@given(plans())
@settings(deadline=None)
def test_memory_peaks_where_the_schedule_says_and_falls_back_to_the_weights(plan: Plan) -> None:
    job = replace(JOB, batch_size=plan.micro_batches * plan.micro_batch_size)
    found = {memory.device: memory for memory in played(plan).memory}
    for number, stage in enumerate(plan.stages):
        for name, rows in zip(stage.devices, stage.rows):
            most = plan.most_in_flight(number)
            assert found[name].peak == stage_bytes(six_layers(), stage.layers, job, rows, most)
            assert found[name].steps[-1][1] == found[name].held == found[name].steps[0][1]


@given(plans(), st.booleans(), st.integers(20, 90))
@settings(deadline=None)
def test_memory_is_never_negative_and_lacks_where_the_peak_is_above_the_budget(
    plan: Plan, prefill: bool, budget_mib: int
) -> None:
    job = replace(JOB, batch_size=plan.micro_batches * plan.micro_batch_size)
    cluster = cluster_of(plan)
    devices = tuple(replace(device, memory_bytes=budget_mib * MIB) for device in cluster.devices)
    found = simulate(plan, six_layers(), replace(cluster, devices=devices), job, Work(50, 2, prefill=prefill))
    for memory in found.memory:
        levels = [level for _, level in memory.steps]
        assert min(levels) >= memory.held > 0
        assert [time for time, _ in memory.steps] == sorted(time for time, _ in memory.steps)
        assert memory.peak == max(*levels, memory.cached)
        assert memory.missing == max(memory.peak - budget_mib * MIB, 0)
        assert (memory in found.out_of_memory) == (memory.peak > memory.budget)


@given(plans(), st.booleans(), st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None)
def test_the_bytes_of_the_first_pass_are_those_of_its_messages(
    plan: Plan, caches: bool, batches: int, epochs: int
) -> None:
    profile = Profile({"encoder": (replace(LAYER, gradient_bytes=1000),) * 6}, {})
    job = replace(JOB, batch_size=plan.micro_batches * plan.micro_batch_size)
    work = Work(batches * job.batch_size, epochs, caches=caches)
    found = simulate(plan, profile, cluster_of(plan), job, work)
    layers = [places(profile, stage)[1] - places(profile, stage)[0] for stage in plan.stages]
    ring = sum(2 * (len(stage.devices) - 1) * 1000 * count for stage, count in zip(plan.stages, layers))
    sent = sum(message.size for message in found.transfers) + ring
    assert found.phases[0].bytes_sent == pytest.approx((1 if caches else epochs) * batches * sent)
    assert found.bytes_sent == sum(phase.bytes_sent for phase in found.phases)


def test_a_group_sums_its_gradients_once_a_mini_batch() -> None:
    layers = (replace(LAYER, gradient_bytes=MIB),) * 2
    profile, cluster = Profile({"one": layers}, {}), a_cluster(1.0, 1.0, 1.0)
    alone = Plan((StagePlan({"one": (0, 2)}, ("d0",), (6,)),), 2)
    shared = Plan((StagePlan({"one": (0, 2)}, ("d0", "d1", "d2"), (2, 2, 2)),), 2)
    job = replace(JOB, batch_size=12)
    ring = all_reduce_s(cluster, ["d0", "d1", "d2"], 2 * MIB) + all_reduce_s(cluster, ["d0", "d1", "d2"], 16)
    work = simulate(alone, profile, cluster, job).step_s
    found = simulate(shared, profile, cluster, job)
    assert found.step_s == pytest.approx(work / 3 + ring)
    assert sum(span.kind == "reduce" for span in found.spans) == 3
    assert found.bytes_sent == 2 * 2 * 2 * MIB


def test_a_slow_device_delays_those_behind_it() -> None:
    plan = Plan(tuple(StagePlan({"encoder": (4 * i, 4 * i + 4)}, (f"d{i}",), (4,)) for i in range(3)), 6)
    profile, job = a_profile(STREAMS["one"]), replace(JOB, batch_size=24)
    alike = simulate(plan, profile, a_cluster(2.0, 2.0, 2.0), job).step_s
    straggling = simulate(plan, profile, a_cluster(2.0, 1.0, 2.0), job).step_s
    assert 1.4 * alike < straggling < 2 * alike


def test_the_run_is_a_first_epoch_a_spreading_and_cached_epochs() -> None:
    plan = Plan(
        (StagePlan({"encoder": (0, 6)}, ("d0", "d1"), (4, 2)), StagePlan({"encoder": (6, 12)}, ("d2",), (6,))), 4
    )
    profile, cluster = a_profile(STREAMS["one"]), a_cluster(1.0, 1.0, 1.0)
    job = replace(JOB, batch_size=24)
    once = simulate(plan, profile, cluster, job, Work(60, 1))
    found = simulate(plan, profile, cluster, job, Work(60, 3))
    fill, spread, cached = found.phases
    assert [phase.name for phase in found.phases] == ["fill", "spread", "cached"]
    assert once.phases == (fill,)
    assert 2.4 * found.step_s < fill.seconds < 3 * found.step_s  # two and a half mini-batches
    entries = 60 * 12 * 30 * 1024
    assert spread.bytes_sent == pytest.approx(entries * 2 / 3)
    assert cached.seconds == pytest.approx(2 * 3 * costs(profile, job).cached_seconds(cluster.devices[0], 20 / 3))
    assert found.seconds == sum(phase.seconds for phase in found.phases)
    uncached = simulate(plan, profile, cluster, job, Work(60, 3, caches=False))
    assert uncached.seconds == pytest.approx(3 * fill.seconds)


def test_devices_that_lack_memory_are_named_with_the_bytes() -> None:
    plan = Plan((StagePlan({"encoder": (0, 12)}, ("d0", "d1"), (4, 4)),), 3)
    profile = a_profile(STREAMS["one"])
    cluster = a_cluster(1.0, 1.0)
    assert simulate(plan, profile, cluster, JOB).out_of_memory == ()
    small = replace(cluster, devices=(cluster.devices[0], replace(cluster.devices[1], memory_bytes=50 * MIB)))
    found = simulate(plan, profile, small, JOB)
    (lacking,) = found.out_of_memory
    assert lacking.device == "d1"
    assert lacking.missing == stage_bytes(profile, plan.stages[0].layers, JOB, 4, 1) - 50 * MIB
    assert found.to_json()["fits"] is False


def test_it_is_plain_data() -> None:
    plan = Plan((StagePlan({"encoder": (0, 12)}, ("d0",), (4,)),), 2)
    found = json.loads(json.dumps(simulate(plan, a_profile(STREAMS["one"]), a_cluster(1.0)).to_json()))
    assert found["devices"][0]["device"] == "d0"
    assert {span["kind"] for span in found["spans"]} == {"forward", "backward"}


@pytest.mark.parametrize(
    ("layers", "device", "match"),
    [
        ((0, 12), "x", "uses device 'x', which is not in the cluster: d0"),
        ((0, 11), "d0", r"another model: this one's stages must run encoder \[0, 12\) once"),
        ((0, 13), "d0", "another model"),
        ((1, 12), "d0", "another model"),
    ],
)
def test_a_plan_for_something_else_is_refused(layers: tuple[int, int], device: str, match: str) -> None:
    plan = Plan((StagePlan({"encoder": layers}, (device,), (4,)),), 2)
    with pytest.raises(BadInput, match=match):
        simulate(plan, a_profile(STREAMS["one"]), a_cluster(1.0), JOB)
