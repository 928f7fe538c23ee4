"""Schedules, tested as the lists that they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.runtime.schedule import (
    SCHEDULES,
    Action,
    actions_of,
    all_forward_all_backward,
    one_forward_one_backward,
)

STAGES = st.integers(1, 6)
MICRO = st.integers(1, 12)
NAMES = st.sampled_from(sorted(SCHEDULES))
LIMITS = st.none() | st.integers(1, 6)


def a_plan(stages: int, micro: int, name: str = "1f1b", limit: int | None = None) -> Plan:
    held = tuple(StagePlan({"one": (i, i + 1)}, (str(i),), (1,)) for i in range(stages))
    return Plan(held, micro, name, in_flight=limit if name == "1f1b" else None)


def in_flight(actions: tuple[Action, ...]) -> int:
    """Most micro-batches whose forward has run and whose backward has not."""
    now, most = 0, 0
    for action in actions:
        now += 1 if action.kind == "forward" else -1
        most = max(most, now)
    return most


@given(NAMES, STAGES, MICRO)
def test_each_micro_batch_goes_forward_once_then_backward_once(name: str, stages: int, micro: int) -> None:
    for stage in range(stages):
        actions = SCHEDULES[name](stage, stages, micro)
        assert sorted(map(str, actions)) == sorted(f"{kind}{m}" for kind in "FB" for m in range(micro))
        place = {str(action): i for i, action in enumerate(actions)}
        assert all(place[f"F{m}"] < place[f"B{m}"] for m in range(micro))
        for kind in ("forward", "backward"):
            assert [a.micro for a in actions if a.kind == kind] == list(range(micro))


@given(STAGES, MICRO)
def test_1f1b_holds_at_most_s_minus_i_micro_batches(stages: int, micro: int) -> None:
    for stage in range(stages):
        assert in_flight(one_forward_one_backward(stage, stages, micro)) == min(stages - stage, micro)
        assert in_flight(all_forward_all_backward(stage, stages, micro)) == micro


def met(action: Action, stage: int, stages: int, done: set[tuple[int, str]]) -> bool:
    """Whether what the action needs from its neighbour has been done."""
    if action.kind == "forward":
        return stage == 0 or (stage - 1, f"F{action.micro}") in done
    return stage == stages - 1 or (stage + 1, f"B{action.micro}") in done


def rounds(plan: Plan) -> int:
    """Rounds until all is done, every stage doing one action a round where its neighbours have done what it needs."""
    stages = len(plan.stages)
    left = [list(actions_of(plan, stage, plan.micro_batches)) for stage in range(stages)]
    done: set[tuple[int, str]] = set()
    count = 0
    while any(left):
        ready = [s for s in range(stages) if left[s] and met(left[s][0], s, stages, done)]
        if not ready:
            raise AssertionError(f"deadlock: {[list(map(str, actions[:1])) for actions in left]}")
        done |= {(s, str(left[s].pop(0))) for s in ready}
        count += 1
    return count


@given(NAMES, STAGES, MICRO)
def test_the_stages_never_wait_for_each_other_in_a_circle(name: str, stages: int, micro: int) -> None:
    assert rounds(a_plan(stages, micro, name)) == 2 * (micro + stages - 1)


@given(STAGES, MICRO, st.integers(1, 6))
def test_a_limit_holds_at_every_stage_costs_rounds_and_never_locks(stages: int, micro: int, limit: int) -> None:
    plan = a_plan(stages, micro, limit=limit)
    for stage in range(stages):
        most = in_flight(actions_of(plan, stage, micro))
        assert most == plan.most_in_flight(stage) == min(stages - stage, micro, limit)
    assert rounds(plan) >= rounds(a_plan(stages, micro))
    if limit == 1:
        assert rounds(plan) == 2 * stages * micro


@pytest.mark.parametrize(
    ("stage", "order"),
    [
        (0, "F0 F1 F2 B0 F3 B1 B2 B3"),
        (1, "F0 F1 B0 F2 B1 F3 B2 B3"),
        (2, "F0 B0 F1 B1 F2 B2 F3 B3"),
    ],
)
def test_1f1b_of_three_stages_as_in_the_papers_figure(stage: int, order: str) -> None:
    assert " ".join(map(str, one_forward_one_backward(stage, 3, 4))) == order


class Neighbour:
    """A stage as its neighbours see it, whose every send waits until it is asked for, as with no room for sends."""

    def __init__(self, plan: Plan, stage: int) -> None:
        self.stage, self.stages = stage, len(plan.stages)
        self.actions = actions_of(plan, stage, plan.micro_batches)
        self.at = 0
        self.computed = False

    def needs(self, action: Action) -> bool:
        return self.stage > 0 if action.kind == "forward" else self.stage < self.stages - 1

    def asked_for(self) -> set[str]:
        """Receives posted so far: up to the action under way, and the next one that needs any."""
        begun = [str(a) for a in self.actions[: self.at + 1] if self.needs(a)]
        return {*begun, *[str(a) for a in self.actions[self.at + 1 :] if self.needs(a)][:1]}


def advance(stage: Neighbour, all_stages: list[Neighbour], arrived: set[tuple[int, str]]) -> bool:
    """Compute or send, if that is possible now."""
    if stage.at == len(stage.actions):
        return False
    action = stage.actions[stage.at]
    if not stage.computed:
        stage.computed = not stage.needs(action) or (stage.stage, str(action)) in arrived
        return stage.computed
    to = stage.stage + (1 if action.kind == "forward" else -1)
    if 0 <= to < stage.stages:
        if str(action) not in all_stages[to].asked_for():
            return False
        arrived.add((to, str(action)))
    stage.at, stage.computed = stage.at + 1, False
    return True


@given(NAMES, STAGES, MICRO, LIMITS)
def test_one_receive_posted_ahead_is_enough_where_every_send_waits_for_its_receiver(
    name: str, stages: int, micro: int, limit: int | None
) -> None:
    line = [Neighbour(a_plan(stages, micro, name, limit), stage) for stage in range(stages)]
    arrived: set[tuple[int, str]] = set()
    while any(advance(stage, line, arrived) for stage in line):
        pass
    assert [stage.at for stage in line] == [2 * micro] * stages
