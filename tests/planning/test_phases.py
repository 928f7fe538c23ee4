"""The phases of a run: prefill, formats of entries, spreading beside training, slow devices, and what disks take."""

import time
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link, Pace, Paces, Profile, StreamPaces
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cost import all_reduce_s, costs
from pac_core.planning.entries import owned_by
from pac_core.planning.phases import Cached, Run, backbone_alone
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.planning.slowness import Slowness
from pac_core.runtime.passes import PASS_TOKENS, PASSES
from pac_core.testing.scheduler import JOB, LAYER, MIB, STREAMS, a_profile

FREE = Link(1e30, 0.0)

NET = Link(1e8, 1e-4)

TRAINED = replace(LAYER, gradient_bytes=MIB)

TWO_AND_ONE = Plan((StagePlan({"one": (0, 2)}, ("d0", "d1"), (4, 2)), StagePlan({"one": (2, 4)}, ("d2",), (6,))), 4)

PROFILE = Profile({"one": (TRAINED,) * 4}, {})


def cluster(count: int, link: Link = NET, **more: Any) -> Cluster:
    return Cluster(tuple(DeviceProfile(f"d{i}", 1e9, 1 << 40, **more) for i in range(count)), default=link)


EVEN = Pace(1e9)

PACES = Paces((StreamPaces("one", EVEN, EVEN, EVEN, EVEN),), EVEN, EVEN)
"""As the rates of `cluster`."""

UPDATES = {"step_s": 0.25, "update_bytes_per_s": 1e7}


def job_of(plan: Plan, tokens: float = 30.0) -> Job:
    return Job(plan.micro_batches * plan.micro_batch_size, plan.micro_batch_size, tokens, 64)


def run(work: Work, link: Link = NET, plan: Plan = TWO_AND_ONE, **more: Any) -> Timeline:
    return simulate(plan, PROFILE, cluster(plan.size, link, **more), job_of(plan), work)


def seconds_of(found: Timeline, name: str) -> float:
    return sum(phase.seconds for phase in found.phases if phase.name == name)


# prefill


@given(stages=st.integers(1, 5))
def test_a_prefill_runs_the_backbone_alone_in_large_micro_batches(stages: int) -> None:
    plan = Plan(tuple(StagePlan({"one": (i, i + 1)}, (f"d{i}",), (2,)) for i in range(stages)), 3)
    profile, job = Profile({"one": (TRAINED,) * stages}, {}), job_of(plan)
    rows = PASS_TOKENS // 30 // 2 * 2
    samples = 3 * PASSES * stages * rows
    found = simulate(plan, profile, cluster(stages, FREE), job, Work(samples, prefill=True))
    forward = rows * (costs(profile, job).forward_flops[1] - 30 * LAYER.side_flops / 3) / 1e9
    assert found.step_s == pytest.approx((PASSES * stages + stages - 1) * forward)
    assert seconds_of(found, "prefill") == pytest.approx(3 * found.step_s)
    assert {span.kind for span in found.spans} == {"forward"}
    assert all(t.kind == "forward" and t.size == pytest.approx(rows * 30 * LAYER.hidden_bytes) for t in found.transfers)


def test_after_a_prefill_all_epochs_are_from_the_cache() -> None:
    ahead, beside = (run(Work(600, 3, prefill=prefill)) for prefill in (True, False))
    assert [phase.name for phase in ahead.phases] == ["prefill", "spread", "cached"]
    assert seconds_of(ahead, "cached") == pytest.approx(1.5 * seconds_of(beside, "cached"))
    assert ahead.phases[0].bytes_written == beside.phases[0].bytes_written
    assert ahead.phases[0].seconds < beside.phases[0].seconds
    assert ahead.phases[1].bytes_sent < beside.phases[1].bytes_sent  # no trained slices of the side network
    assert [phase.name for phase in run(Work(600, 1, prefill=True)).phases] == ["prefill", "spread", "cached"]


def test_a_prefill_needs_no_memory_for_training_until_the_cache_is_full() -> None:
    ahead, beside = (run(Work(600, 3, prefill=prefill)) for prefill in (True, False))
    for one, other in zip(ahead.memory, beside.memory):
        assert one.held == other.held - 2 * LAYER.side_bytes
        assert one.steps[-1][1] == one.held
        assert one.cached == other.cached == 4 * LAYER.side_bytes + 6 * 64 * 4 * LAYER.kept_bytes
        assert one.peak == max(one.cached, *(level for _, level in one.steps))


def test_a_prefill_without_a_cache_is_refused() -> None:
    with pytest.raises(BadInput, match="a prefill fills the cache, which this run does not have"):
        Work(10, prefill=True, caches=False)


def test_the_backbone_alone_costs_what_is_left_without_the_side_network() -> None:
    whole, alone = costs(PROFILE, JOB), backbone_alone(costs(PROFILE, JOB))
    assert alone.forward_flops[-1] == pytest.approx(whole.forward_flops[-1] - whole.side_flops[-1] / 3)
    assert alone.backward_flops[-1] == alone.gradient_bytes[-1] == 0
    assert (alone.crossings[2].forward, alone.crossings[2].backward) == (30 * LAYER.hidden_bytes, 0)


# entries


@pytest.mark.parametrize(
    ("entries", "kept", "sent"), [("float32", 1, 1), ("bfloat16", 0.5, 0.5), ("int8", 0.265625, 1)]
)
def test_entries_have_the_bytes_of_their_format(
    entries: Literal["float32", "bfloat16", "int8"], kept: float, sent: float
) -> None:
    work = Work(600, 3, prefill=True)
    plain, found = (run(one, disk_bytes_per_s=1e6) for one in (work, replace(work, entries=entries)))
    assert [phase.bytes_sent for phase in found.phases] == pytest.approx(
        [plain.phases[0].bytes_sent, sent * plain.phases[1].bytes_sent, plain.phases[2].bytes_sent]
    )
    assert found.phases[0].bytes_written == pytest.approx(kept * plain.phases[0].bytes_written)
    assert found.phases[2].bytes_read == pytest.approx(3 * found.phases[0].bytes_written)
    assert seconds_of(found, "cached") < seconds_of(plain, "cached") or entries == "float32"


def test_a_backbone_in_bfloat16_has_entries_of_that_format() -> None:
    job = replace(job_of(TWO_AND_ONE), dtype="bfloat16")
    plain = simulate(TWO_AND_ONE, PROFILE, cluster(3), job, Work(60, 2))
    found = simulate(TWO_AND_ONE, PROFILE, cluster(3), job, Work(60, 2, entries="float32"))
    assert found.phases[0].bytes_written == pytest.approx(2 * plain.phases[0].bytes_written)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(BadInput, match="cache format 'int4' is not known; choose from float32, bfloat16, int8"):
        Work(10, entries="int4")  # type: ignore[arg-type]


def test_entries_are_written_behind_the_first_pass_unless_the_disk_is_slower_than_it() -> None:
    free, fast, slow = (run(Work(600), disk_bytes_per_s=rate).phases[0] for rate in (None, 1e9, 1e5))
    assert fast == free
    assert slow.seconds == pytest.approx(600 * 2 * 30 * LAYER.tap_bytes / 1e5)  # two layers of all samples: d2
    assert run(Work(600, caches=False), disk_bytes_per_s=1e5).phases[0].seconds == free.seconds


# spreading

WORKS = st.builds(
    Work,
    samples=st.integers(40, 400),
    epochs=st.integers(2, 4),
    prefill=st.booleans(),
    entries=st.sampled_from(["float32", "bfloat16", "int8"]),
    slowness=st.builds(Slowness, sigma=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 3)),
)


@given(work=WORKS, rate=st.sampled_from([1e5, 1e6, 1e7, 1e9]), shared=st.booleans())
@settings(deadline=None, max_examples=40)
def test_spreading_beside_training_is_never_slower_than_before_it(work: Work, rate: float, shared: bool) -> None:
    there = replace(cluster(3, Link(rate, 1e-3)), shared=shared)
    apart, beside = (
        simulate(TWO_AND_ONE, PROFILE, there, job_of(TWO_AND_ONE), replace(work, overlaps=overlaps))
        for overlaps in (False, True)
    )
    waited = seconds_of(beside, "spread")
    assert -1e-9 <= waited <= seconds_of(apart, "spread") + 1e-9
    assert seconds_of(beside, "cached") == seconds_of(apart, "cached")
    assert beside.bytes_sent == apart.bytes_sent


def test_training_waits_for_what_it_needs_alone() -> None:
    """Six steps, of which each two need a chunk."""
    plan = Plan((StagePlan({"one": (0, 4)}, ("d0", "d1"), (3, 3)),), 4)
    alone = Profile({"one": (LAYER,) * 4}, {})  # no gradients to sum
    job = job_of(plan)
    made = Run(plan, costs(alone, job), [(0, 4)], cluster(2), job, Work(6 * 24, 2), owned_by(plan, cluster(2), 24))
    steps, second = Cached(made), Cached(made).step_s
    assert steps.count == 6
    assert steps.waited(second * np.array([[10, 20, 30], [1, 2, 3]])) == pytest.approx((32 - 6) * second)
    assert steps.waited(second * np.array([[0.5, 1, 1], [0.25, 2.75, 2.75]])) == pytest.approx(0.75 * second)
    assert steps.waited(np.zeros((2, 3))) == 0.0


def test_sums_of_gradients_have_right_of_way() -> None:
    plan, job, work = TWO_AND_ONE, job_of(TWO_AND_ONE), Work(6 * 24, 2)
    made = Run(plan, costs(PROFILE, JOB), [(0, 2), (2, 4)], cluster(3), job, work, owned_by(plan, cluster(3), 24))
    steps, ring = Cached(made), all_reduce_s(cluster(3), ["d0", "d1", "d2"], 4 * MIB)
    arrivals = 100 * steps.step_s * np.array([[1, 2, 3]] * 3)
    assert steps.waited(arrivals) == pytest.approx(300 * steps.step_s + 4 * ring - 4 * steps.step_s)


def test_one_device_has_nothing_to_spread() -> None:
    alone = Plan((StagePlan({"one": (0, 4)}, ("d0",), (6,)),), 4)
    for overlaps in (False, True):
        spread = run(Work(600, 3, overlaps=overlaps), plan=alone).phases[1]
        assert (spread.name, spread.seconds, spread.bytes_sent) == ("spread", 0.0, 0.0)


# steps from the cache


def test_a_step_from_the_cache_reads_computes_sums_and_updates() -> None:
    found = run(Work(600, 2), disk_bytes_per_s=1e6, paces=PACES, **UPDATES)
    device = DeviceProfile("d", 1e9, 1, disk_bytes_per_s=1e6)
    own = costs(PROFILE, JOB).cached_seconds(device, 8)
    ring = all_reduce_s(cluster(3), ["d0", "d1", "d2"], 4 * MIB)
    assert found.cached_step_s == pytest.approx(own + ring + 0.25 + 4 * MIB / 1e7)
    assert seconds_of(found, "cached") == pytest.approx(25 * found.cached_step_s)
    assert found.phases[2].bytes_sent == 25 * 2 * 2 * 4 * MIB
    kinds = [span.kind for span in found.cached_spans if span.device == "d1"]
    assert kinds == ["wait", "forward", "backward", "reduce", "update"]
    assert max(span.end_s for span in found.cached_spans) == pytest.approx(found.cached_step_s)


def test_a_mini_batch_ends_with_the_update_of_weights_where_it_was_measured() -> None:
    plain, found = run(Work(24)), run(Work(24), paces=PACES, **UPDATES)
    assert found.step_s == pytest.approx(plain.step_s + 0.25 + 2 * MIB / 1e7)
    assert sum(span.kind == "update" for span in found.spans) == 3
    ahead = run(Work(24, prefill=True), paces=PACES, **UPDATES)
    assert ahead.step_s == pytest.approx(run(Work(24, prefill=True)).step_s)  # nothing is trained there


def test_what_was_measured_of_writing_entries_counts_in_each_forward_pass() -> None:
    plain, found = run(Work(24)), run(Work(24), write_bytes_per_s=1e6)
    assert found.spans[0].seconds == pytest.approx(plain.spans[0].seconds + 4 * 2 * 30 * LAYER.tap_bytes / 1e6)
    assert run(Work(24, caches=False), write_bytes_per_s=1e6).step_s == plain.step_s
    halved = run(Work(24, entries="bfloat16"), write_bytes_per_s=1e6)
    assert halved.spans[0].seconds == pytest.approx((plain.spans[0].seconds + found.spans[0].seconds) / 2)


# devices of different speeds


def mixed(*speeds: float) -> Cluster:
    return Cluster(tuple(DeviceProfile(f"d{i}", 1e9 * speed, 1 << 40) for i, speed in enumerate(speeds)), default=FREE)


ALIKE = Plan((StagePlan({"one": (0, 4)}, ("d0", "d1", "d2"), (2, 2, 2)),), 4)


def test_a_step_from_the_cache_goes_by_the_speeds_of_its_devices() -> None:
    """Rows by name, whatever the order of the plan; the slowest has none."""
    plan = replace(ALIKE, stages=(replace(ALIKE.stages[0], devices=("d2", "d0", "d1")),))
    there, job, found = mixed(1.0, 5.0, 0.01), job_of(plan), costs(PROFILE, job_of(plan))
    steps = Cached(Run(plan, found, [(0, 4)], there, job, Work(48, 2), owned_by(plan, there, 24)))
    assert dict(zip(steps.run.names, steps.rows)) == {"d2": 0.0, "d0": 4.0, "d1": 20.0}
    assert sum(steps.rows) == 24
    slow, fast = found.side_seconds(there.devices[0], 4).both, found.side_seconds(there.devices[1], 20).both
    assert steps.step_s == pytest.approx(max(slow, fast))
    assert steps.step_s < found.side_seconds(there.devices[0], 8).both < found.side_seconds(there.devices[2], 8).both
    assert {span.device for span in steps.spans() if span.kind in ("forward", "backward")} == {"d0", "d1"}
    own = {memory.device: memory.cached for memory in simulate(plan, PROFILE, there, job, Work(48, 2)).memory}
    side = 4 * LAYER.side_bytes
    assert own["d2"] == side
    assert own["d0"] == side + 4 * 64 * 4 * LAYER.kept_bytes


@given(
    speeds=st.lists(st.sampled_from([0.01, 0.3, 1.0, 1.1, 4.0]), min_size=3, max_size=3),
    work=WORKS,
    micro=st.none() | st.integers(1, 5),
)
@settings(deadline=None, max_examples=40)
def test_shares_by_speed_are_as_quick_as_equal_ones_at_least(
    speeds: list[float], work: Work, micro: int | None
) -> None:
    there, job = mixed(*speeds), replace(job_of(ALIKE), micro_batch_size=micro)
    equal = replace(owned_by(ALIKE, there, 24), parts=np.full(3, 1 / 3))
    one, other = (
        Cached(Run(ALIKE, costs(PROFILE, job), [(0, 4)], there, job, replace(work, slowness=Slowness()), owned))
        for owned in (owned_by(ALIKE, there, 24), equal)
    )
    assert sum(one.rows) == pytest.approx(work.samples / one.count)
    assert one.step_s <= other.step_s * 1.1  # alike devices have equal shares
    assert max(speeds) < 1.2 * min(speeds) or one.step_s < other.step_s
    spread = simulate(ALIKE, PROFILE, there, job, work).phases[1]
    assert spread.seconds >= 0


def test_a_device_that_turns_out_slow_has_the_share_of_what_it_was_taken_for() -> None:
    slowness = Slowness({"d1": 4.0})
    known, unknown = run(Work(48, 2), FREE), run(Work(48, 2, slowness=slowness), FREE)
    assert unknown.cached_step_s == pytest.approx(4 * known.cached_step_s)


# slow devices


@given(
    device=st.sampled_from(["d0", "d1", "d2"]),
    factor=st.floats(1.0, 8.0),
    prefill=st.booleans(),
    overlaps=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_slow_device_never_makes_a_run_faster(device: str, factor: float, prefill: bool, overlaps: bool) -> None:
    work = Work(100, 3, prefill=prefill, overlaps=overlaps)
    alike, slow = run(work, FREE), run(replace(work, slowness=Slowness({device: factor})), FREE)
    assert slow.seconds >= alike.seconds - 1e-9
    assert slow.bytes_sent == alike.bytes_sent


@pytest.mark.parametrize("paces", [None, PACES])
def test_a_device_that_is_slow_all_the_time_takes_so_many_times_as_long(paces: Paces | None) -> None:
    work = Work(100, 3)
    slowness = Slowness({f"d{i}": 2.0 for i in range(3)})
    plain = run(work, FREE, layer_s=1e-3, backward_flops=2e9, paces=paces, **UPDATES)
    slow = run(replace(work, slowness=slowness), FREE, layer_s=1e-3, backward_flops=2e9, paces=paces, **UPDATES)
    assert slow.seconds == pytest.approx(2 * plain.seconds)
    one = run(
        replace(work, slowness=Slowness({"d1": 2.0})), FREE, layer_s=1e-3, backward_flops=2e9, paces=paces, **UPDATES
    )
    assert plain.seconds < one.seconds < slow.seconds


def test_random_slowness_is_the_same_for_a_seed_and_another_for_another() -> None:
    drawn = [Slowness(sigma=sigma, seed=seed) for sigma, seed in ((0.5, 1), (0.5, 1), (0.5, 2), (0.0, 1))]
    one, again, other, none = (run(Work(600, 3, slowness=slowness)) for slowness in drawn)
    assert one.to_json() == again.to_json()
    assert one.seconds != other.seconds
    assert none.seconds == run(Work(600, 3)).seconds
    assert seconds_of(one, "cached") > seconds_of(none, "cached")  # the slowest of three, each time
    lengths = {round(s.seconds, 9) for s in one.spans if (s.device, s.kind) == ("d2", "forward")}
    assert len(lengths) == TWO_AND_ONE.micro_batches


def test_random_factors_are_log_normal_with_median_one() -> None:
    (draws,) = Slowness(sigma=0.4, seed=5).draws(0, [20000])
    assert sorted(draws)[10000] == pytest.approx(1.0, rel=0.02)
    assert sorted(draws)[int(0.8413 * 20000)] == pytest.approx(2.718281828**0.4, rel=0.03)


@pytest.mark.parametrize(
    ("factors", "said"),
    [({"x": 2.0}, "'x' is to be slow and is not in the cluster: d0, d1, d2"), ({"d1": 0.0}, "slower by the factor 0")],
)
def test_slowness_of_nobody_is_refused(factors: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run(Work(10, slowness=Slowness(factors)))


# size


def test_a_large_plan_is_simulated_in_well_under_a_second() -> None:
    stages = tuple(StagePlan({"one": (3 * i, 3 * i + 3)}, (f"d{2 * i}", f"d{2 * i + 1}"), (4, 4)) for i in range(32))
    plan, profile = Plan(stages, 64), Profile({"one": (TRAINED,) * 96}, {})
    begin = time.process_time()
    simulate(plan, profile, cluster(64), job_of(plan), Work(100_000, 3, overlaps=True))
    assert time.process_time() - begin < 1.0


def test_work_as_a_run_does_it_is_that_of_the_runs_own_defaults() -> None:
    from pac_core.config import CacheConfig, RunConfig

    found = Work.of_run(100, 3)
    assert found == Work(100, 3, prefill=True, entries="bfloat16", overlaps=True)
    assert CacheConfig().dtype == found.entries
    assert RunConfig.model_fields["fill"].default == "auto"  # which is a prefill
    assert Work.of_run(100, 3, "train-while-fill").prefill is False


def test_a_step_from_the_cache_takes_a_devices_share_a_micro_batch_at_a_time() -> None:
    """What each pass takes at least counts for every micro-batch."""
    profile, work = a_profile(STREAMS["one"]), Work(16, 2)
    device = DeviceProfile("d0", 1e9, 1 << 40, layer_s=0.01)
    plan = Plan((StagePlan({"encoder": (0, 12)}, ("d0",), (16,)),), 1)
    found = costs(profile, JOB)

    def cached(micro: int | None) -> float:
        job = replace(JOB, batch_size=16, micro_batch_size=micro)
        return simulate(plan, profile, Cluster((device,)), job, work).cached_step_s

    assert cached(None) == cached(16) == pytest.approx(found.side_seconds(device, 16).both)
    assert cached(6) == pytest.approx(2 * found.side_seconds(device, 6).both + found.side_seconds(device, 4).both)
