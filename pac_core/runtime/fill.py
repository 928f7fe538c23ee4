"""Step 4 of a run: the backbone runs once over what the cache lacks, then goes from memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pac_core.contracts.adapter import Taps
from pac_core.errors import BadInput
from pac_core.examples import Example
from pac_core.model import PacModel
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.team import ALONE, Team

CALIBRATION_SAMPLES = 1000

CALIBRATION_PAIRS = 300
"""Fewer, since all their taps are in memory at once."""


@dataclass(frozen=True)
class Filled:
    """What a fill took: wall time in seconds, and the samples for which the backbone ran."""

    seconds: float
    backbone_samples: int


def prefill(
    model: PacModel,
    examples: Sequence[Example],
    stop: StopFlag,
    on_progress: Callable[[int, int], None],
    team: Team = ALONE,
) -> None:
    """Put the entries of all examples into the cache, sorted by length, in large batches, each device its part of them.

    Args:
        on_progress: told of samples done, and to do, of this device's part.

    Raises:
        PeerLost: another device is gone; what was filled is flushed.
        KeyboardInterrupt: a stop was requested; what was filled is flushed, so the next run goes on from there.
        StoreFull: the cache has no room; what was filled stays.
    """
    examples = team.to_fill(model, examples)
    missing = len(model.reader.missing(examples))
    cache = model.reader.cache
    assert cache is not None
    try:
        for done in model.reader.fill(examples):
            on_progress(done, missing)
            if stop.requested:
                raise KeyboardInterrupt
            team.check()
    finally:
        cache.flush()
    team.filled(cache, stop)


def check_shared(model: PacModel, store: str, team: Team) -> None:
    """Make sure that all devices see the cache.

    Raises:
        BadInput: it is each device's own; ``store`` names it.
    """
    cache = model.reader.cache
    if team.size > 1 and cache is not None and not cache.shared:
        raise BadInput(f"several devices share a cache on disk, but --store is {store}; choose disk, or one device")


def calibrate(model: PacModel, examples: Sequence[Example]) -> None:
    """Set the model's scales from samples evenly spaced, and all regression targets."""
    step = max(len(examples) // (CALIBRATION_PAIRS if model.task.apart else CALIBRATION_SAMPLES), 1)
    chosen = list(examples[::step])
    last = model.side.target
    taps = []
    for start in range(0, len(chosen), 64):
        found = model.reader.read(chosen[start : start + 64])[last]
        taps.append({last: Taps(found.values if model.task.apart else found.values[-1:].clone(), found.rows)})
    targets = None
    if model.task.kind == "regression":
        targets = torch.tensor([float(e.target) for e in examples if isinstance(e.target, int | float)])
    model.calibrate(taps, targets)


def release(model: PacModel, examples: Sequence[Example]) -> bool:
    """Drop the backbone's layers if the cache holds every example; returns whether it did."""
    if model.reader.cache is None or model.reader.missing(examples):
        return False
    model.release_backbone()
    return True
