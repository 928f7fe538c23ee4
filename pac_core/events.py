"""What happens in a run, as data: handed to every `pac_observe` hook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pac_core.spans import Span


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


# with several devices


@dataclass(frozen=True)
class DeviceJoined(Event):
    """A device takes part in the run, in stage ``stage`` (from 0) of the plan."""

    device: str
    stage: int


@dataclass(frozen=True)
class DeviceLost(Event):
    """A device is gone, and why; the run ends."""

    device: str
    reason: str


@dataclass(frozen=True)
class DeviceStatus(Event):
    """How a device is doing; comes about once a second from each, while the cache is filled and while epochs run.

    Attributes:
        device, stage: as in `DeviceJoined`.
        phase: as in `StepDone`; ``"load"`` before the first step.
        busy: share of the time since the last status, 0 to 1, in which the device did not wait for others.
        bytes_per_s: tensors that it sent meanwhile.
        resident_bytes: main memory that its process uses.
    """

    device: str
    stage: int
    phase: str
    busy: float
    bytes_per_s: float
    resident_bytes: int


@dataclass(frozen=True)
class MiniBatchTimed(Event):
    """What every device did during one mini-batch: the timeline of the report."""

    spans: tuple[Span, ...]
