"""What happens in a run, as data: handed to every `pac_observe` hook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins: its configuration as plain data, the number of trainable parameters, and how many samples were cut
    to the longest length."""

    config: Mapping[str, object]
    trainable_params: int
    truncated: int = 0


@dataclass(frozen=True)
class StepDone(Event):
    """Progress inside an epoch.

    Attributes:
        epoch: from 1.
        phase: ``"fill"`` (the backbone runs, entries are written), ``"cached"`` (side network only) or ``"evaluate"``.
        done, total: samples of this phase.
        loss: mean training loss since the epoch began; None while filling or evaluating.
        cache_hits: samples of this epoch found in the cache so far.
    """

    epoch: int
    phase: str
    done: int
    total: int
    loss: float | None
    cache_hits: int


@dataclass(frozen=True)
class EpochDone(Event):
    """An epoch ended: its record as in ``metrics.json`` and the evaluation's metrics (empty without evaluation)."""

    record: Mapping[str, object]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint from which the run can resume lies at ``path``."""

    path: Path


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is over: the content of ``metrics.json``."""

    metrics: Mapping[str, object]
