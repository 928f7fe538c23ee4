"""What goes before the first epoch, who sends which entries after it, and sums beside a backward pass."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pac_core.batches import epoch_batches, share_out
from pac_core.contracts.cluster import Cluster, Link, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.planning.cost import costs, places
from pac_core.planning.entries import owned_by, spread_of
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.runtime.routes import share_of
from pac_core.shares import evened
from pac_core.testing.scheduler import JOB, LAYER, MIB, a_cluster

SLOW = Link(8e6, 0.0)
"""A byte takes a microsecond."""

LAYERS = (replace(LAYER, gradient_bytes=MIB),) * 4
PROFILE = Profile({"encoder": LAYERS}, {"encoder": 0})
PIPELINE = Plan((StagePlan({"encoder": (0, 1)}, ("d0",), (4,)), StagePlan({"encoder": (1, 4)}, ("d1",), (4,))), 2)
ALIKE = Plan((StagePlan({"encoder": (0, 4)}, ("d0", "d1"), (4, 4)),), 1)
HYBRID = Plan(
    (StagePlan({"encoder": (0, 2)}, ("d0", "d1"), (3, 1)), StagePlan({"encoder": (2, 4)}, ("d2", "d3"), (2, 2))), 4
)


def simulated(plan: Plan, work: Work) -> Timeline:
    cluster: Cluster = replace(a_cluster(*[1.0] * plan.size), links={}, default=SLOW)
    job = replace(JOB, batch_size=plan.micro_batches * plan.micro_batch_size)
    return simulate(plan, PROFILE, cluster, job, work)


def test_the_leader_hands_out_weights_and_stages_tell_each_other_what_scales_they_found() -> None:
    found = simulated(PIPELINE, Work(16, hands_out=True, scaled=8))
    weights, scales, fill = found.phases
    assert [phase.name for phase in found.phases] == ["weights", "scales", "fill"]
    assert weights.bytes_sent == 4 * MIB
    assert weights.seconds == pytest.approx(4e-6 * MIB)
    hidden = 8 * LAYER.hidden_bytes * JOB.mean_length
    assert scales.bytes_sent == pytest.approx(hidden + 4 * MIB)
    assert scales.seconds > 3e-6 * MIB  # the second stage has three layers to give
    assert fill == simulated(PIPELINE, Work(16)).phases[0]


def test_devices_that_run_their_own_samples_send_no_entries() -> None:
    assert simulated(ALIKE, Work(16, 2)).phases[1].bytes_sent == 0


@pytest.mark.parametrize("speeds", [(1.0, 1.0, 1.0, 1.0), (1.0, 3.0, 0.5, 0.01)], ids=["equal", "unequal"])
@pytest.mark.parametrize("plan", [PIPELINE, ALIKE, HYBRID], ids=["pipeline", "alike", "hybrid"])
def test_entries_go_from_those_who_run_a_sample_to_its_owner(plan: Plan, speeds: Sequence[float]) -> None:
    """Against the runtime's own batches and routes."""
    batch, samples, there = plan.micro_batches * plan.micro_batch_size, 64, a_cluster(*speeds[: plan.size])
    data = share_out([()] * samples, batch, 0, evened(speeds[: plan.size]))  # type: ignore[list-item]
    found = costs(PROFILE, replace(JOB, batch_size=batch))
    slices = [places(PROFILE, stage) for stage in plan.stages]
    each = [found.cached_bytes[last] - found.cached_bytes[first] for first, last in slices]
    sent = [[0.0] * plan.size for _ in range(plan.size)]
    for indices in epoch_batches(data, 0, 1):
        for row, sample in enumerate(indices):
            for rank in range(plan.size):
                first, last = share_of(plan, rank, plan.micro_batch_size)
                owner = int(data.owners[sample])
                if first <= row % plan.micro_batch_size < last and owner != rank:
                    sent[rank][owner] += each[plan.place(rank)[0]]
    predicted = spread_of(
        plan,
        found,
        slices,
        samples,
        JOB.mean_length,
        owned_by(plan, there, batch),
        trained=True,
    )
    assert predicted.messages.tolist() == [pytest.approx(row) for row in sent]


def test_sums_beside_a_backward_pass_take_only_what_is_left_of_them() -> None:
    apart, beside = (simulated(ALIKE, Work(16, 2, sums_beside=value)).phases[2] for value in (False, True))
    sums = 4e-6 * MIB
    computing = apart.seconds / 2 - sums
    assert max(sums, computing) < beside.seconds / 2 < apart.seconds / 2
    assert beside.bytes_sent == apart.bytes_sent
