"""Step 4 of a run: the backbone runs once over what the cache lacks, then goes from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pac_core.contracts.adapter import Taps
from pac_core.errors import BadInput
from pac_core.examples import Example
from pac_core.files import read_json, write_json
from pac_core.model import PacModel
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.report import data_digest
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
    planned: Sequence[int] = (),
) -> None:
    """Put the entries of all examples into the cache, sorted by length, in large batches, each device its part of them.

    Args:
        on_progress: told of samples done, and to do, of this device's part.
        planned: indices of the examples that a stopped fill had set out for; see `pac_core.taps.TapReader.fill`.

    Raises:
        PeerLost: another device is gone; what was filled is flushed.
        KeyboardInterrupt: a stop was requested; what was filled is flushed, so the next run goes on from there.
        StoreFull: the cache has no room; what was filled stays.
    """
    chosen = team.agree(sorted({*planned, *model.reader.missing(examples)}), len(examples))
    own = [examples[chosen[i]] for i in team.share([len(examples[i]) for i in chosen])]
    missing = len(model.reader.missing(own))
    cache = model.reader.cache
    assert cache is not None
    try:
        for done in model.reader.fill(own, planned=range(len(own))):
            on_progress(min(done, missing), missing)
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


def planned_fill(model: PacModel, examples: Sequence[Example], path: Path, resume: bool) -> list[int]:
    """Indices of the examples that are to be filled, noted in ``path``; on ``resume`` those that the stopped run noted,
    if it was over the same examples."""
    data = data_digest(examples)
    if resume and path.exists():
        with contextlib.suppress(BadInput, KeyError, TypeError):  # a damaged note costs the last bits only
            saved: Any = read_json(path, "what a stopped run had to fill")
            if saved["data"] == data:
                return [i for i in saved["samples"] if 0 <= i < len(examples)]
    missing = model.reader.missing(examples)
    write_json(path, {"data": data, "samples": missing})
    return missing


def calibrate(model: PacModel, examples: Sequence[Example]) -> None:
    """Set the model's scales from samples evenly spaced, and all regression targets."""
    chosen = calibration_samples(model, examples)
    last = model.side.target
    taps = []
    for start in range(0, len(chosen), 64):
        found = model.reader.read(chosen[start : start + 64])[last]
        taps.append({last: Taps(found.values if model.task.apart else found.values[-1:].clone(), found.rows)})
    model.calibrate(taps, regression_targets(model, examples))


def calibration_samples(model: PacModel, examples: Sequence[Example]) -> list[Example]:
    """The samples that scales are set from."""
    step = max(len(examples) // (CALIBRATION_PAIRS if model.task.apart else CALIBRATION_SAMPLES), 1)
    return list(examples[::step])


def regression_targets(model: PacModel, examples: Sequence[Example]) -> torch.Tensor | None:
    """(samples,) targets; None for tasks without numbers."""
    if model.task.kind != "regression":
        return None
    return torch.tensor([float(e.target) for e in examples if isinstance(e.target, int | float)])


def release(model: PacModel, examples: Sequence[Example]) -> bool:
    """Drop the backbone's layers if the cache holds every example; returns whether it did."""
    if model.reader.cache is None or model.reader.missing(examples):
        return False
    model.release_backbone()
    return True
