"""What schedulers share: slices of the chain, and rows in proportion."""

from __future__ import annotations

from collections.abc import Sequence

from pac_core.contracts.cluster import Job
from pac_core.errors import BadInput

Slot = tuple[str, int]
"""Stream and number of a layer."""


def slices(slots: Sequence[Slot]) -> dict[str, tuple[int, int]]:
    """Per stream the half-open range of consecutive ``slots`` of a chain."""
    found: dict[str, tuple[int, int]] = {}
    for stream, layer in slots:
        found[stream] = (found.get(stream, (layer, layer))[0], layer + 1)
    return found


def split_rows(rows: int, speeds: Sequence[float]) -> tuple[int, ...]:
    """``rows`` in proportion to ``speeds``, at least one each.

    Raises:
        BadInput: there are fewer rows than devices.

    >>> split_rows(8, [3.0, 1.0])
    (6, 2)
    """
    if rows < len(speeds):
        raise BadInput(
            f"a micro-batch of {rows} rows cannot be shared by {len(speeds)} devices; give a larger --micro-batch-size"
        )
    whole = sum(speeds)
    left = rows - len(speeds)
    exact = [left * speed / whole for speed in speeds]
    parts = [1 + int(part) for part in exact]
    for i in sorted(range(len(parts)), key=lambda i: int(exact[i]) - exact[i])[: rows - sum(parts)]:
        parts[i] += 1
    return tuple(parts)


def micro_batches(job: Job, size: int) -> int:
    """Micro-batches of ``size`` rows in a batch."""
    return -(-job.batch_size // size)


def rows_of(job: Job) -> int:
    """Rows of a micro-batch, where a whole batch is one unless the job says otherwise."""
    return min(job.micro_batch_size or job.batch_size, job.batch_size)
