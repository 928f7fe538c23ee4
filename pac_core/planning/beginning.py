"""What goes before the first epoch of a run of this program: weights that are handed out, and the model's scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pac_core.planning.entries import STATE, Matrix, Spread, spread_of
from pac_core.planning.phases import Phase, Run, first_pass
from pac_core.planning.work import Work


def beginning(run: Run) -> Iterator[Phase]:
    """The leader gives all devices the side network; some samples go forward through the stages, whose devices then
    give each other the scales that these have found, with the weights."""
    if not run.work.hands_out or run.plan.size == 1:
        return
    given = np.zeros((run.plan.size,) * 2)
    given[0, 1:] = run.found.gradient_bytes[-1]
    yield Phase("weights", seconds_of(run, given), float(given.sum()))
    if not run.work.scaled:
        return
    alone = replace(run, work=Work(run.work.scaled, prefill=True))
    forward = first_pass(alone, alone.played(min(alone.batch, run.work.scaled)))
    weights = gathered(run) / STATE
    sent = forward.bytes_sent + float(weights.sum())
    yield Phase("scales", forward.seconds + seconds_of(run, weights), sent, forward.bytes_written)


def gathered(run: Run) -> Matrix:
    """Bytes from each device (row) to each other one (column) by which all come to the whole side network, with its
    moments, after an epoch in the stages."""
    return spread_of(run.plan, run.found, run.slices, 0, run.tokens, run.owned, trained=True).state


def seconds_of(run: Run, sent: Matrix) -> float:
    """Seconds until all of ``sent`` has arrived."""
    return float(Spread(np.zeros_like(sent), sent, (1,) * len(sent)).arrivals(run.cluster, run.names).max())
