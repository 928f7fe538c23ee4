"""Rows of micro-batches: how many there may be, how many a device has memory for, who of a group takes how many."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from pac_core.contracts.cluster import DeviceProfile, Job
from pac_core.planning.cost import Costs


def sizes(job: Job) -> list[int]:
    """Sizes of micro-batches that are tried: the one asked for, else those that divide a batch evenly, or nearly so."""
    if job.micro_batch_size:
        return [min(job.micro_batch_size, job.batch_size)]
    counts = [count for count in range(1, job.batch_size + 1) if count & (count - 1) == 0]
    return sorted({-(-job.batch_size // count) for count in counts}, reverse=True)


def rows_that_fit(found: Costs, member: DeviceProfile, first: int, last: int, in_flight: int) -> float:
    """Rows of a micro-batch that a device has memory for in the slice [first, last)."""
    none = found.bytes(first, last, 0, in_flight)
    each = found.bytes(first, last, 1, in_flight) - none
    free = member.memory_bytes - none
    return math.inf if each == 0 and free >= 0 else free / max(each, 1.0)


def share_rows(
    found: Costs, members: Sequence[DeviceProfile], first: int, last: int, size: int, in_flight: int
) -> tuple[int, ...] | None:
    """Rows of a micro-batch of ``size`` for each member of a group, at least one, so that the slowest takes the least
    time; None if they have not the memory. Row by row, to the one that is done first with it."""
    if size < len(members):
        return None
    rows = [1] * len(members)
    room = [rows_that_fit(found, member, first, last, in_flight) for member in members]
    if min(room) < 1:
        return None

    none, one = ([found.seconds(member, first, last, count).both for member in members] for count in (0, 1))

    def done(i: int) -> tuple[float, int]:
        return none[i] + (rows[i] + 1) * (one[i] - none[i]), i

    waiting = [done(i) for i in range(len(members)) if rows[i] + 1 <= room[i]]
    heapq.heapify(waiting)
    for _ in range(size - len(members)):
        if not waiting:
            return None
        i = waiting[0][1]
        rows[i] += 1
        if rows[i] + 1 <= room[i]:
            heapq.heapreplace(waiting, done(i))
        else:
            heapq.heappop(waiting)
    return tuple(rows)
