"""Schedules as data: in which order a stage runs its micro-batches forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pac_core.contracts.scheduler import Plan, ScheduleName


class Action(NamedTuple):
    """Run micro-batch ``micro`` forward or backward through a stage."""

    kind: Literal["forward", "backward"]
    micro: int

    def __str__(self) -> str:
        return f"{self.kind[0].upper()}{self.micro}"


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """1F1B: stage i of s runs s - i - 1 micro-batches ahead, then one forward and one backward in turn.

    At most s - i micro-batches are in flight at stage i, however many there are.

    >>> print(*one_forward_one_backward(0, 2, 3))
    F0 F1 B0 F2 B1 B2
    """
    ahead = min(stages - stage - 1, micro_batches)
    warm = [Action("forward", m) for m in range(ahead)]
    steady = [
        Action(kind, m + ahead if kind == "forward" else m)
        for m in range(micro_batches - ahead)
        for kind in ("forward", "backward")
    ]
    cool = [Action("backward", m) for m in range(micro_batches - ahead, micro_batches)]
    return (*warm, *steady, *cool)


def all_forward_all_backward(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """GPipe: every micro-batch forward, then every one backward; all are in flight at once.

    >>> print(*all_forward_all_backward(0, 2, 2))
    F0 F1 B0 B1
    """
    kinds: tuple[Literal["forward"], Literal["backward"]] = ("forward", "backward")
    return tuple(Action(kind, m) for kind in kinds for m in range(micro_batches))


Schedule = Callable[[int, int, int], tuple[Action, ...]]
"""From stage, number of stages and number of micro-batches to what the stage does, in order."""

SCHEDULES: dict[ScheduleName, Schedule] = {"1f1b": one_forward_one_backward, "gpipe": all_forward_all_backward}
"""By the name that a plan gives."""


def actions_of(plan: Plan, stage: int, micro_batches: int) -> tuple[Action, ...]:
    """What a stage of a plan does with a batch of that many micro-batches. Where fewer may be in flight, early stages
    run as few ahead as a later one does."""
    stages = len(plan.stages)
    place = stage if plan.in_flight is None else max(stage, stages - plan.in_flight)
    return SCHEDULES[plan.schedule](place, stages, micro_batches)
