"""What is fitted: four numbers of a Jetson Nano, to four cells of table 2. No other result of the paper is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from scipy.optimize import least_squares

from pac_core.planning.icpp24.facts import Facts
from pac_core.planning.icpp24.runs import Setting, of_row, timeline
from pac_core.registry import Registry

RATES = ("t5-base/adapters/standalone/mrpc", "t5-base/pac/sst2", "t5-base/pac/mrpc")
"""Cells that fix the rates of forward passes, backward passes and the memory card."""

MEMORY = "t5-large/lora/eco-fl/mrpc"
"""Cell that fixes the memory: it says how many micro-batches are in flight."""

CELLS = (*RATES, MEMORY)

START = Setting(1.2e11, 1.6e11, round(1.5 * 2**30), 9e7)
"""Where the fit begins, with the memory that the paper draws as its line."""

ABSENT = 9.0
"""Error of a run that does not fit."""

STEP = 50_000_000
STEPS = 12
"""Memory is tried in steps of 50 MB from the paper's line down."""


def calibrated(facts: Facts, registry: Registry, start: Setting = START) -> Setting:
    """The setting whose predictions are nearest to `CELLS`; of equals the one with most memory."""
    tried, rated = [], start
    for i in range(STEPS):
        rated = _rated(replace(rated, memory_bytes=start.memory_bytes - i * STEP), facts, registry)
        tried.append(rated)
    return min(tried, key=lambda one: round(sum(_error(cell, one, facts, registry) ** 2 for cell in CELLS), 3))


def _rated(setting: Setting, facts: Facts, registry: Registry) -> Setting:
    """The rates that are nearest to `RATES` for some memory."""

    def with_rates(logs: Sequence[float]) -> Setting:
        forward, backward, disk = (math.exp(log) for log in logs)
        return replace(setting, forward_flops=forward, backward_flops=backward, disk_bytes_per_s=disk)

    def errors(logs: Sequence[float]) -> list[float]:
        return [_error(cell, with_rates(logs), facts, registry) for cell in RATES]

    begin = [math.log(rate) for rate in (setting.forward_flops, setting.backward_flops, setting.disk_bytes_per_s)]
    return with_rates(least_squares(errors, begin, diff_step=1e-4).x)


def _error(cell: str, setting: Setting, facts: Facts, registry: Registry) -> float:
    """Logarithm of predicted over printed hours; `ABSENT` if the run does not fit."""
    hours = predicted_hours(cell, setting, facts, registry)
    return ABSENT if hours is None else math.log(hours / facts.hours(cell))


def predicted_hours(cell: str, setting: Setting, facts: Facts, registry: Registry) -> float | None:
    """Hours of a run of table 2; None if it is out of memory. Of the facts, samples and epochs count."""
    model, *row, dataset = cell.split("/")
    found = timeline(
        of_row(model, "/".join(row), setting), setting, registry, facts.samples(dataset), facts.epochs(dataset)
    )
    return None if found is None else found.seconds / 3600
