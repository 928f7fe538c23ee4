"""What a report shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pac_core.spans import Span


@dataclass(frozen=True)
class PhaseUse:
    """What a phase of the run took on the leading device.

    Attributes:
        phase: ``"load"``, ``"save"``, or one of `pac_core.events.StepDone`.
        seconds: wall time.
        resident_bytes: most memory that was seen in use during it.
    """

    phase: str
    seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class DeviceUse:
    """How one of several devices did in a phase, from what it told the leader about once a second.

    Attributes:
        device, phase: names.
        busy: mean share of time, 0 to 1, in which it did not wait for others.
        bytes_per_s: mean rate at which it sent tensors.
        resident_bytes: most memory in use.
    """

    device: str
    phase: str
    busy: float
    bytes_per_s: float
    resident_bytes: int


@dataclass(frozen=True)
class Outcome:
    """A sample of the evaluation data and what the trained model made of it; texts may be shortened.

    Attributes:
        error: distance of a predicted number; else None.
    """

    text: str
    expected: str
    predicted: str
    right: bool
    error: float | None = None


@dataclass(frozen=True)
class Content:
    """Everything that a report is drawn from.

    Attributes:
        config: `pac_core.config.RunConfig.plain`.
        metrics: the content of ``metrics.json``.
        task: kind of the task.
        train_samples, eval_samples: sizes of the data.
        phases: in the order in which they first came.
        device_use: with several devices.
        timeline: of one mini-batch; empty where none was taken.
        outcomes: examples, at most some 20.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    task: str
    train_samples: int
    eval_samples: int
    phases: tuple[PhaseUse, ...] = ()
    device_use: tuple[DeviceUse, ...] = ()
    timeline: tuple[Span, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
