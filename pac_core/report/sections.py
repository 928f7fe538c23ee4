"""The sections of a report; each is left out where there is nothing to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pac_core.report.charts import Bar, Curve, bars, curves
from pac_core.report.content import Content, Outcome
from pac_core.report.svg import add, markup, picture
from pac_core.report.timeline import shares, timeline
from pac_core.report.words import amount, count, percent, phase_words, score, size, span_of_time

UNKNOWN = "–"

LED = "On the device that leads the run."


@dataclass(frozen=True)
class Column:
    """Of a table; ``number`` aligns it to the right, ``free`` is text of any kind."""

    name: str
    number: bool = False
    free: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A picture, what its marks mean, and its figures as a table."""

    title: str
    picture: Markup
    table: Table
    legend: tuple[tuple[str, Markup], ...] = ()
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def sections(content: Content) -> Iterator[Section]:
    """All sections for which there is something to show, in the order of the page."""
    if content.metrics["epochs"]:
        yield Section("Learning", figures=tuple(_learning(content.metrics)))
    if content.phases:
        yield Section("Time and memory", figures=tuple(_phases(content)))
    yield _devices(content)
    yield plan_section(content.metrics["plan"])
    if content.timeline:
        yield _timeline(content)
    yield _cache(content.metrics)
    if content.outcomes:
        yield _outcomes(content.outcomes)


def words(*names: str) -> tuple[Column, ...]:
    """Columns of short texts."""
    return tuple(Column(name) for name in names)


def numbers(*names: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(name, number=True) for name in names)


def _free(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, free=True) for name in names)


# learning


def _learning(metrics: Mapping[str, Any]) -> Iterator[Figure]:
    """The loss, then scores from 0 to 1 together, then each other metric by itself."""
    epochs = metrics["epochs"]
    held = {0: metrics["eval_before"], **{record["epoch"]: record["eval"] for record in epochs}}
    names = dict.fromkeys(name for values in held.values() for name in values if name != "loss")
    found = {name: Curve(name, _points(held, name)) for name in names}
    losses = [Curve("training", tuple((record["epoch"], record["loss"]) for record in epochs))]
    if points := _points(held, "loss"):
        losses.append(Curve("evaluation", points))
    together = [name for name, curve in found.items() if all(-1 <= value <= 1 for _, value in curve.points)]
    yield _figure("Loss", losses)
    if together:
        yield _figure("Scores on the evaluation data", [found[name] for name in together])
    for name in names:
        if name not in together:
            yield _figure(f"{name} on the evaluation data", [found[name]])


def _points(held: Mapping[int, Mapping[str, float]], name: str) -> tuple[tuple[int, float], ...]:
    return tuple((epoch, values[name]) for epoch, values in held.items() if name in values)


def _figure(title: str, drawn: Sequence[Curve]) -> Figure:
    epochs = sorted({epoch for curve in drawn for epoch, _ in curve.points})
    by_epoch = [dict(curve.points) for curve in drawn]
    rows = [
        (str(epoch), *(score(values[epoch]) if epoch in values else UNKNOWN for values in by_epoch)) for epoch in epochs
    ]
    legend = tuple((curve.name, line_mark(number)) for number, curve in enumerate(drawn))
    caption = "Epoch 0 is before training." if epochs[0] == 0 else ""
    table = Table(title, numbers("epoch", *(curve.name for curve in drawn)), tuple(rows))
    return Figure(title, curves(f"{title} by epoch", drawn), table, legend, caption)


def line_mark(number: int) -> Markup:
    """A piece of the curve of this number."""
    mark = picture(28, 10, "", "mark")
    mark.set("aria-hidden", "true")
    add(mark, "line", f"curve c{number}", x1=0, x2=28, y1=5, y2=5)
    return markup(mark)


# time and memory


def _phases(content: Content) -> Iterator[Figure]:
    names = [phase_words(phase.phase) for phase in content.phases]
    whole = sum(phase.seconds for phase in content.phases) or 1.0
    rows = [
        (name, span_of_time(p.seconds), percent(p.seconds / whole), size(p.resident_bytes))
        for name, p in zip(names, content.phases)
    ]
    columns = (*words("phase"), *numbers("time", "share", "memory"))
    took = [Bar(name, p.seconds, span_of_time(p.seconds)) for name, p in zip(names, content.phases)]
    used = [Bar(name, p.resident_bytes, size(p.resident_bytes)) for name, p in zip(names, content.phases)]
    for title, drawn in (("Time by phase", took), ("Memory in use by phase, at most", used)):
        yield Figure(title, bars(title, drawn), Table(title, columns, tuple(rows)), caption=LED)


# devices and plan


def _devices(content: Content) -> Section:
    listed = content.metrics["plan"]["stages"]
    stages = {device: number for number, stage in enumerate(listed, 1) for device in stage["devices"]}
    counted = numbers("threads", "samples filled", "busy", "sent", "peak memory")
    columns = (*words("device", "stage", "kind"), *counted)
    rows = [_device(device, stages) for device in content.metrics["devices"]]
    tables = [Table("Devices", columns, tuple(rows))]
    if content.device_use:
        use = [
            (u.device, phase_words(u.phase), percent(u.busy), f"{size(u.bytes_per_s)}/s", size(u.resident_bytes))
            for u in content.device_use
        ]
        columns = (*words("device", "phase"), *numbers("busy", "sent", "memory"))
        tables.append(Table("By phase", columns, tuple(use)))
    text = "Busy is the share of time in which a device did not wait for others." if content.device_use else ""
    return Section("Devices", text, tables=tuple(tables))


def _device(device: Mapping[str, Any], stages: Mapping[str, int]) -> tuple[str, ...]:
    name = str(device["name"])
    seconds = device.get("seconds")
    return (
        name,
        str(stages.get(name, UNKNOWN)),
        str(device["kind"]),
        str(device["threads"]),
        amount(device["samples_filled"]),
        percent(min(device["seconds_busy"] / seconds, 1.0)) if seconds else span_of_time(device["seconds_busy"]),
        size(device["bytes_sent"]) if "bytes_sent" in device else UNKNOWN,
        size(device["peak_rss_bytes"]) if "peak_rss_bytes" in device else UNKNOWN,
    )


def plan_section(plan: Mapping[str, Any]) -> Section:
    """A plan, as it stands in ``plan.json``."""
    rows = []
    for number, stage in enumerate(plan["stages"], 1):
        layers = ", ".join(f"{stream} {first} to {last - 1}" for stream, (first, last) in stage["layers"].items())
        split = ", ".join(map(str, stage.get("rows", ()))) or UNKNOWN
        rows.append((str(number), ", ".join(map(str, stage["devices"])), layers, split))
    columns = words("stage", "devices", "layers", "rows of a micro-batch")
    parts = [f"Made by the scheduler {plan['scheduler']}"]
    if "schedule" in plan:
        parts.append(f"order {plan['schedule']}")
    if "micro_batch_size" in plan:
        parts.append(f"{count(plan['micro_batches'], 'micro-batch')} of {count(plan['micro_batch_size'], 'row')}")
    return Section("Plan", f"{', '.join(parts)}.", tables=(Table("Plan", columns, tuple(rows)),))


def _timeline(content: Content) -> Section:
    spans = content.timeline
    rows = [
        (s.device, f"{s.working * 1000:.1f} ms", f"{s.idle * 1000:.1f} ms", percent(s.bubble)) for s in shares(spans)
    ]
    kinds = dict.fromkeys(span.kind for span in spans)
    figure = Figure(
        "What each device did",
        timeline(spans),
        Table("One mini-batch", (*words("device"), *numbers("computing", "idle", "share idle")), tuple(rows)),
        legend=tuple((kind, swatch(kind)) for kind in kinds),
        caption="F2 is the forward pass of micro-batch 2, B2 its backward pass. Grey is idle: the pipeline's bubbles.",
        wide=True,
    )
    return Section("One mini-batch", figures=(figure,))


def swatch(kind: str) -> Markup:
    """A box of a timeline, for its legend."""
    mark = picture(28, 10, "", "mark")
    mark.set("aria-hidden", "true")
    add(mark, "rect", f"box {kind}", x=0.5, y=0.5, width=27, height=9)
    return markup(mark)


# cache and examples


def _cache(metrics: Mapping[str, Any]) -> Section:
    cache = metrics["cache"]
    hits = sum(record["cache_hits"] for record in metrics["epochs"])
    backbone = sum(record["backbone_samples"] for record in metrics["epochs"])
    rows = [
        ("entries", amount(cache["entries"])),
        ("size", size(cache["bytes"])),
        ("size before compression", size(cache["bytes_raw"])),
        ("samples read from the cache, all epochs", amount(hits)),
        ("samples that ran through the backbone", amount(backbone)),
        ("damaged entries, computed again", amount(cache["damaged"])),
    ]
    return Section("Cache", tables=(Table("Cache", (*words("what"), *numbers("figure")), tuple(rows)),))


def _outcomes(outcomes: Sequence[Outcome]) -> Section:
    if outcomes[0].error is not None:
        columns = (*_free("text"), *numbers("expected", "predicted", "error"))
        rows = tuple((o.text, o.expected, o.predicted, score(o.error or 0.0)) for o in outcomes)
        return Section("Examples", "The nearest and the farthest.", tables=(Table("Examples", columns, rows),))
    columns = _free("text", "expected", "predicted")
    named = (("Predicted wrong", False), ("Predicted right", True))
    tables = [
        Table(title, columns, tuple((o.text, o.expected, o.predicted) for o in outcomes if o.right is right))
        for title, right in named
    ]
    return Section("Examples", "From the evaluation data.", tables=tuple(table for table in tables if table.rows))
