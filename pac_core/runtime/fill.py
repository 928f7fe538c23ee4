"""Step 4 of a run: the backbone runs once over what the cache lacks, then goes from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pac_core.batches import Dataset
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

CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Filled:
    """What a fill took: wall time in seconds, and the samples for which the backbone ran."""

    seconds: float
    backbone_samples: int


def prefill(
    model: PacModel,
    data: Dataset,
    stop: StopFlag,
    on_progress: Callable[[int, int], None],
    team: Team = ALONE,
    planned: Callable[[Sequence[int]], Sequence[int]] = lambda todo: (),
) -> None:
    """Put the entries of all samples into the caches of the devices that work on them: those that another device has
    are brought, the backbone runs for the rest, sorted by length, in large batches.

    Args:
        on_progress: told of samples done, and to do, of this device's part.
        planned: asked at the leader which samples a stopped fill had set out for, given those that nobody has; see
            `pac_core.taps.TapReader.fill`.

    Raises:
        PeerLost: another device is gone; what was filled is flushed.
        KeyboardInterrupt: a stop was requested; what was filled is flushed, so the next run goes on from there.
        StoreFull: the cache has no room; what was filled stays.
    """
    cache = model.reader.cache
    assert cache is not None
    total = len(data.examples)
    nobody = (~team.held(model.reader.missing(data.examples), total).any(0)).nonzero()[:, 0].tolist()
    given, _ = team.from_leader({"planned": list(planned(nobody)) if team.leads else []}, {})
    chosen = {*given["planned"], *nobody}
    own = [data.examples[i] for i in data.of(team.rank) if i in chosen]
    missing = len(model.reader.missing(own))
    try:
        for done in model.reader.fill(own, planned=range(len(own))):
            on_progress(min(done, missing), missing)
            if stop.requested:
                raise KeyboardInterrupt
            team.check()
    finally:
        cache.flush()
    team.filled(cache, stop)
    team.bring(cache, model.reader.taps, data, team.held(model.reader.missing(data.examples), total))


def planned_fill(missing: Sequence[int], examples: Sequence[Example], path: Path, resume: bool) -> list[int]:
    """Indices of the examples that are to be filled, the ``missing`` ones, noted in ``path``; on ``resume`` those that
    the stopped run noted, if it was over the same examples."""
    data = data_digest(examples)
    if resume and path.exists():
        with contextlib.suppress(BadInput, KeyError, TypeError):  # a damaged note costs the last bits only
            saved: Any = read_json(path, "what a stopped run had to fill")
            if saved["data"] == data:
                return [i for i in saved["samples"] if 0 <= i < len(examples)]
    write_json(path, {"data": data, "samples": list(missing)})
    return list(missing)


def calibrate(model: PacModel, data: Dataset, team: Team = ALONE) -> None:
    """Set the leader's scales from samples evenly spaced, each read by the device that works on it, and from all
    regression targets; `Team.align` hands them on. Texts read apart are matched in all their taps, so the leader is
    brought those it lacks.

    Raises:
        PeerLost: another device is gone.
    """
    chosen, targets = calibration_samples(model, data.examples), regression_targets(model, data.examples)
    if model.task.apart:
        examples = [data.examples[i] for i in chosen]
        _bring_to_leader(model, examples, team)
        if team.leads:
            model.calibrate([model.reader.read(batch) for batch in _batches(examples)], targets)
        return
    own = [data.examples[i] for i in chosen if data.owners[i] == team.rank]
    features = [model.frozen_features(taps).clone() for _, taps in model.reader.read_each(_batches(own))]
    found = team.at_leader(torch.cat(features) if features else None)
    if team.leads:
        model.set_scales(torch.cat(found), targets=targets)


def calibration_samples(model: PacModel, examples: Sequence[Example]) -> list[int]:
    """Indices of the samples that scales are set from."""
    step = max(len(examples) // (CALIBRATION_PAIRS if model.task.apart else CALIBRATION_SAMPLES), 1)
    return list(range(0, len(examples), step))


def _batches(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[i : i + CALIBRATION_BATCH] for i in range(0, len(examples), CALIBRATION_BATCH)]


def regression_targets(model: PacModel, examples: Sequence[Example]) -> torch.Tensor | None:
    """(samples,) targets; None for tasks without numbers."""
    if model.task.kind != "regression":
        return None
    return torch.tensor([float(e.target) for e in examples if isinstance(e.target, int | float)])


def _bring_to_leader(model: PacModel, examples: Sequence[Example], team: Team) -> None:
    cache = model.reader.cache
    if team.size > 1 and cache is not None:
        nobody = np.zeros(len(examples), np.int64)
        held = team.held(model.reader.missing(examples), len(examples))
        team.bring(cache, model.reader.taps, Dataset(examples, nobody, nobody, 1), held)


def release(model: PacModel, examples: Sequence[Example]) -> bool:
    """Drop the backbone's layers if the cache holds every example; returns whether it did."""
    if model.reader.cache is None or model.reader.missing(examples):
        return False
    model.release_backbone()
    return True
