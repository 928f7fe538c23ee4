"""How a plan's micro-batches are cut while only the backbone runs."""

from __future__ import annotations

from dataclasses import replace

from pac_core.contracts.scheduler import Plan
from pac_core.runtime.optimizer import cut
from pac_core.runtime.routes import share_of

PASS_TOKENS = 1024
"""Tokens, padding included, that go through a stage at once while only the backbone runs, or a micro-batch if that has
more: as much as matrix products need to be fast, and no more memory than training takes."""

PASSES = 8
"""Micro-batches for each stage in one call of the pipeline: its bubble is then at most one part in nine."""


def widened(plan: Plan, rows: int) -> Plan:
    """``plan`` with micro-batches of up to ``rows`` rows, but not fewer than it has, split in the same proportions."""
    factor = max(rows // plan.micro_batch_size, 1)
    stages = tuple(replace(stage, rows=tuple(factor * own for own in stage.rows)) for stage in plan.stages)
    return replace(plan, stages=stages)


def own_rows(plan: Plan, rank: int, rows: int) -> int:
    """Rows that ``rank`` works on of a batch of ``rows``."""
    shares = (share_of(plan, rank, len(piece)) for piece in cut(rows, plan.micro_batch_size))
    return sum(last - first for first, last in shares)
