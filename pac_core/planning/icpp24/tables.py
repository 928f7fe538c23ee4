"""The paper's tables and figures beside what we predict."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pac_core.contracts.cluster import Cluster
from pac_core.planning.cost import FORWARD, Costs, costs, slice_of
from pac_core.planning.icpp24.calibrate import CELLS, START, calibrated, predicted_hours
from pac_core.planning.icpp24.facts import DATASETS, Facts
from pac_core.planning.icpp24.models import SHAPES, SINGLE, TECHNIQUES, Technique, job, profile
from pac_core.planning.icpp24.runs import FIGURE_9A, SCHEDULERS, Run, Setting, grouping, of_row, timeline
from pac_core.planning.make import plan
from pac_core.registry import Registry

GIB = 2**30
"""What the paper's tables call GB: T5-Large's 2.95e9 bytes of weights are its 2.75."""

BATCH = 16
"""Of table 1 and figure 8a."""

PIPELINE = 8
"""Devices of figure 8b: as many are in flight as its activations say."""

ENOUGH = 1 << 40

Pair = Mapping[str, Any]
"""``paper`` and ``predicted``: a number, a list of numbers, or None for out of memory."""


@dataclass(frozen=True)
class Reproduction:
    """Predictions for one calibrated Setting, beside the paper's numbers.

    Attributes:
        setting: that was fitted.
        table2, figure9a, figure10, table1, figure8a, figure8b, figure11: nested mappings with the paper's keys, whose
            leaves are `Pair`.
    """

    setting: Setting
    table2: Mapping[str, Any]
    figure9a: Mapping[str, Any]
    figure10: Mapping[str, Any]
    table1: Mapping[str, Any]
    figure8a: Mapping[str, Any]
    figure8b: Mapping[str, Any]
    figure11: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What ``pac simulate --paper icpp24 --json`` prints."""
        return {
            "calibrated_on": list(CELLS),
            "calibrated": vars(self.setting),
            "summary": self.summary(),
            **{name: value for name, value in vars(self).items() if name != "setting"},
        }

    def summary(self) -> dict[str, Any]:
        """How near the predictions of table 2, figure 9a and figure 10 are, without the cells that were fitted."""
        rows = [next(iter(row.values())) for model in self.table2.values() for row in model.values()]
        groupings = list(pairs(self.figure10))
        predicted = {
            f"{model}/{row}/{name}": pair
            for model, by in self.table2.items()
            for row, cells in by.items()
            for name, pair in cells.items()
        }
        hours = [error for cell, pair in predicted.items() if cell not in CELLS for error in errors(pair)]
        rates = errors(self.figure9a)
        return {
            "table2_out_of_memory_right": sum((p["paper"] is None) == (p["predicted"] is None) for p in rows),
            "table2_combinations": len(rows),
            "table2_median_error": statistics.median(hours),
            "table2_largest_error": max(hours),
            "figure9a_median_error": statistics.median(rates),
            "figure9a_largest_error": max(rates),
            "figure10_right": sum(p["paper"] == p["predicted"] for p in groupings),
            "figure10_groupings": len(groupings),
        }


def pairs(table: Mapping[str, Any]) -> Iterator[Pair]:
    """The leaves of a table."""
    if "paper" in table:
        yield table
        return
    for part in table.values():
        yield from pairs(part)


def errors(table: Mapping[str, Any]) -> list[float]:
    """Relative errors where both numbers are there."""
    both = [(p["paper"], p["predicted"]) for p in pairs(table)]
    return [abs(ours / theirs - 1) for theirs, ours in both if theirs is not None and ours is not None]


def reproduce(facts: Facts, registry: Registry, start: Setting = START) -> Reproduction:
    """Calibrate, and predict everything. Of the paper's results, predictions depend on the calibrated cells alone.

    Args:
        start: other assumptions than ours, to see what they do.

    Raises:
        UnknownPlugin: a scheduler of the systems is not installed.
    """
    for scheduler in SCHEDULERS:
        registry.get("schedulers", scheduler)
    setting = calibrated(facts, registry, start)
    return Reproduction(
        setting,
        _table2(setting, facts, registry),
        _figure9a(setting, facts, registry),
        _figure10(setting, facts, registry),
        _table1(facts),
        _figure8a(setting, facts),
        _figure8b(setting, facts, registry),
        _figure11(setting, facts, registry),
    )


def _pair(paper: Any, predicted: Any) -> Pair:
    return {"paper": paper, "predicted": predicted}


def _table2(setting: Setting, facts: Facts, registry: Registry) -> Mapping[str, Any]:
    """Hours."""
    printed = facts.data["table2_hours"]

    def cell(model: str, row: str, number: int) -> Pair:
        theirs = printed[model][row]
        ours = predicted_hours(f"{model}/{row}/{DATASETS[number]}", setting, facts, registry)
        return _pair(theirs and theirs[number], ours)

    return {
        model: {row: {name: cell(model, row, i) for i, name in enumerate(DATASETS)} for row in facts.rows}
        for model in SHAPES
    }


def _figure9a(setting: Setting, facts: Facts, registry: Registry) -> Mapping[str, Any]:
    """Samples a second in epochs without a cache."""
    printed = facts.data["figure9a_samples_per_second_no_cache"]

    def rate(model: str, system: str, devices: int) -> float | None:
        run = Run(model, "pac", system, devices, FIGURE_9A)
        found = timeline(run, setting, registry, FIGURE_9A * devices)
        return None if found is None else FIGURE_9A * devices / found.step_s

    return {
        model: {
            system: {
                str(count): _pair(theirs and theirs[i], rate(model, system, count))
                for i, count in enumerate(printed["devices"])
            }
            for system, theirs in printed[model].items()
        }
        for model in SHAPES
    }


def _figure10(setting: Setting, facts: Facts, registry: Registry) -> Mapping[str, Any]:
    """Devices of each stage."""
    return {
        model: {
            count: _pair(theirs, list(grouping(profile(model, "pac"), setting, int(count), registry)))
            for count, theirs in by.items()
        }
        for model, by in facts.data["figure10_grouping"].items()
    }


def _table1(facts: Facts) -> Mapping[str, Any]:
    """GB of the whole of T5-Large, 16 samples at once."""
    printed = facts.data["table1_memory_gb"]
    found: dict[str, Any] = {}
    for technique in ("full", "adapters", "lora"):
        weights, gradients = _held("t5-large", technique)
        kept = BATCH * costs(profile("t5-large", technique), job(BATCH, None)).kept_bytes[-1]
        ours = {"weights": weights, "activations": kept, "gradients": gradients}
        found[technique] = {what: _pair(printed[technique][what], size / GIB) for what, size in ours.items()}
    weights, trained = _held("t5-large", "lora")
    found["inference"] = {"weights": _pair(printed["inference"]["weights"], (weights - trained) / GIB)}
    return found


def _held(model: str, technique: Technique) -> tuple[float, float]:
    """Bytes of all weights, and of their gradients."""
    shape, layers = SHAPES[model], costs(profile(model, technique), job(BATCH, None))
    table = SINGLE * shape.width * shape.vocabulary
    trained = layers.gradient_bytes[-1]
    frozen = sum(layer.weight_bytes for held in profile(model, technique).layers.values() for layer in held)
    if technique == "full":
        return frozen + table, trained + table
    return frozen + table + trained, trained


def _figure8a(setting: Setting, facts: Facts) -> Mapping[str, Any]:
    """Seconds a sample on one device, forward and backward, whether or not it has the memory."""
    device = setting.cluster(1).devices[0]
    printed = facts.data["figure8a_seconds_per_sample_fwd_bwd"]

    def passes(model: str, name: str) -> dict[str, float]:
        found = costs(profile(model, "pac" if name == "pac_cached" else name), job(BATCH, None))  # type: ignore[arg-type]
        own = _cached(found) if name == "pac_cached" else found
        seconds = own.seconds(device, 0, own.layers, BATCH)
        return {"forward": seconds.forward / BATCH, "backward": seconds.backward / BATCH}

    return {
        model: {
            name: {way: _pair(theirs and theirs[i], ours) for i, (way, ours) in enumerate(passes(model, name).items())}
            for name, theirs in by.items()
        }
        for model, by in printed.items()
    }


def _cached(found: Costs) -> Costs:
    """The side network alone."""
    forward = tuple(FORWARD * flops for flops in found.side_flops)
    return replace(found, forward_flops=forward, held_bytes=found.side_bytes)


def _figure8b(setting: Setting, facts: Facts, registry: Registry) -> Mapping[str, Any]:
    """GB of weights, activations and gradients of the device that has most of each, in a pipeline of eight; cached: of
    every device."""
    printed = facts.data["figure8b_peak_gb_weights_activations_gradients"]
    names = ("weights", "activations", "gradients")
    found: dict[str, Any] = {}
    for model in SHAPES:
        ours: dict[str, tuple[float, float, float]] = {
            technique: _staged_gb(model, technique, setting, registry) for technique in TECHNIQUES
        }
        side = costs(profile(model, "pac"), job(BATCH, None))
        trained = side.gradient_bytes[-1] / GIB
        ours["pac_cached"] = (trained, setting.rows * side.kept_bytes[-1] / GIB, trained)
        found[model] = {
            name: {what: _pair(printed[model][name][i], sizes[i]) for i, what in enumerate(names)}
            for name, sizes in ours.items()
        }
    return found


def _staged_gb(model: str, technique: Technique, setting: Setting, registry: Registry) -> tuple[float, float, float]:
    costs_of, work = profile(model, technique), job(setting.rows * PIPELINE, setting.rows)
    roomy = Cluster(tuple(replace(one, memory_bytes=ENOUGH) for one in setting.cluster(PIPELINE).devices))
    chosen = plan(costs_of, roomy, work, "pipeline", registry)
    found = costs(costs_of, work)
    table = SINGLE * SHAPES[model].width * SHAPES[model].vocabulary
    weights, kept, gradients = [], [], []
    for number, stage in enumerate(chosen.stages):
        first, last = next(iter(stage.layers.values()))
        held = sum(layer.weight_bytes for layer in next(iter(costs_of.layers.values()))[first:last])
        trained = slice_of(found.gradient_bytes, first, last)
        entry = table if first == 0 else 0
        weights.append(held + entry + (0 if technique == "full" else trained))
        gradients.append(trained + (entry if technique == "full" else 0))
        kept.append(setting.rows * chosen.most_in_flight(number) * slice_of(found.kept_bytes, first, last))
    return max(weights) / GIB, max(kept) / GIB, max(gradients) / GIB


def _figure11(setting: Setting, facts: Facts, registry: Registry) -> Mapping[str, Any]:
    """Hours of parallel adapters on MRPC, with the devices and mini-batches of table 2, by epochs."""
    printed = facts.data["figure11_mrpc_hours"]
    found: dict[str, Any] = {}
    for model in SHAPES:
        run = of_row(model, "pac", setting)
        found[model] = {}
        for name, caches in (("no_cache", False), ("cache", True)):
            lines = [
                timeline(run, setting, registry, facts.samples("mrpc"), epochs, caches=caches)
                for epochs in printed["epochs"]
            ]
            found[model][name] = {
                str(epochs): _pair(theirs, line and line.seconds / 3600)
                for epochs, theirs, line in zip(printed["epochs"], printed[model][name], lines)
            }
    return found
