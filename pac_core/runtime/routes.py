"""Who talks to whom in a plan, and about which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pac_core.contracts.scheduler import Plan


@dataclass(frozen=True)
class Route:
    """Rows that two devices of neighbouring stages both work on.

    Attributes:
        rank: the other device.
        first, last: the rows [first, last), counted from the first that this device has of the micro-batch.
    """

    rank: int
    first: int
    last: int


def share_of(plan: Plan, rank: int, rows: int) -> tuple[int, int]:
    """Rows [first, last) of a micro-batch of ``rows`` that ``rank`` works on."""
    stage, place = plan.place(rank)
    ends = [0, *accumulate(plan.stages[stage].split(rows))]
    return ends[place], ends[place + 1]


def routes(plan: Plan, rank: int, stage: int, rows: int) -> tuple[Route, ...]:
    """Which rows ``rank`` shares with each device of the neighbouring ``stage``, in order; none beyond the ends."""
    if not 0 <= stage < len(plan.stages):
        return ()
    first, last = share_of(plan, rank, rows)
    found = []
    for other in plan.group(stage):
        start, end = share_of(plan, other, rows)
        start, end = max(start, first), min(end, last)
        if start < end:
            found.append(Route(other, start - first, end - first))
    return tuple(found)


def learning_stages(plan: Plan, reads: Sequence[str]) -> tuple[bool, ...]:
    """For each stage, whether a side state leaves it, whose gradient the next stage sends back: the side network has
    begun by then. It has not where it reads the decoder only and the stage is still in the encoder."""
    begun = [any(stream in reads for stream in stage.layers) for stage in plan.stages]
    return tuple(any(begun[: i + 1]) and i + 1 < len(begun) for i in range(len(begun)))
