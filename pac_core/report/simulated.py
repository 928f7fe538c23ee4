"""What the simulator found, as a picture (.svg) or a page (.html): neither loads anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from pac_core.errors import BadInput
from pac_core.planning.scaling import Scaled
from pac_core.planning.simulate import DeviceMemory, Timeline
from pac_core.report.charts import Curve, curves
from pac_core.report.page import Page, Tile, html, style, write_page
from pac_core.report.sections import Figure, Section, Table, line_mark, numbers, plan_section, swatch, words
from pac_core.report.svg import Element, add, markup, picture, standalone, write_text
from pac_core.report.timeline import LEFT, RIGHT, ROW, TOP, WIDTH, draw_clock, draw_row, scale_of, shares
from pac_core.report.words import count, percent, size, span_of_time
from pac_core.spans import Span, SpanKind, by_device

CURVE = 30.0
"""Height of a memory curve."""

HEAD = 30.0
"""Height of the line above the timeline of a step from the cache."""

ENDINGS = (".svg", ".html")

NO_RATE = "does not fit"


def check_ending(path: Path) -> None:
    """Make sure that a file can be written by its ending.

    Raises:
        BadInput: it is neither .svg nor .html.
    """
    if path.suffix not in ENDINGS:
        ending = f"'{path.suffix}'" if path.suffix else "no ending"
        raise BadInput(f"--plot {path}: {ending} is not known; name it .svg for a picture or .html for a page")


def write_timeline(path: Path, found: Timeline) -> None:
    """Write what a plan would do.

    Raises:
        BadInput: as `check_ending`.
        RunFailed: the file cannot be written.
    """
    check_ending(path)
    alone = path.suffix == ".svg"
    write_page(path, standalone(drawn(found, named=True), style()) if alone else html(_page(found)))


def write_rates(path: Path, found: Sequence[Scaled]) -> None:
    """Write throughput by number of devices; errors as in `write_timeline`."""
    check_ending(path)
    fitting = [one for one in found if one.timeline is not None]
    if not fitting:
        raise BadInput(f"--plot {path}: there is nothing to draw, since nothing fits: {found[0].why}")
    alone = path.suffix == ".svg"
    write_page(path, standalone(_rates(fitting, named=True), style()) if alone else html(_rates_page(found)))


def drawn(found: Timeline, *, named: bool = False) -> Markup:
    """A mini-batch of the first pass, each device's memory below what it does; then a step from the cache.

    Args:
        named: whether a line below says what the colours mean.
    """
    rows, cached = by_device(found.spans), by_device(found.cached_spans)
    height = TOP + (ROW + CURVE) * len(rows)
    below = HEAD + ROW * len(cached) if cached else 0.0
    chart = picture(WIDTH, height + below + HEAD * named, f"what {count(len(rows), 'device')} would do", "timeline")
    seconds = found.step_s
    draw_clock(chart, seconds, TOP, height)
    memory = {one.device: one for one in found.memory}
    for number, (device, own) in enumerate(rows.items()):
        top = TOP + (ROW + CURVE) * number
        draw_row(chart, device, own, (0.0, seconds), top)
        _memory(chart, memory[device], seconds, top + ROW)
    if cached:
        _cached(chart, cached, found.cached_step_s, height)
    if named:
        for place, kind in enumerate(_kinds(found)):
            x = LEFT + 110 * place
            add(chart, "rect", f"box {kind}", x=x, y=height + below + 10, width=27.0, height=9.0)
            write_text(chart, x + 33, height + below + 19, kind)
    return markup(chart)


def _kinds(found: Timeline) -> list[SpanKind]:
    return list(dict.fromkeys(span.kind for span in (*found.spans, *found.cached_spans)))


def _cached(chart: Element, rows: dict[str, list[Span]], seconds: float, top: float) -> None:
    top += HEAD
    write_text(chart, 0, top - 8, "from the cache")
    draw_clock(chart, seconds, top, top + ROW * len(rows))
    for number, (device, own) in enumerate(rows.items()):
        draw_row(chart, device, own, (0.0, seconds), top + ROW * number)


def _memory(chart: Element, memory: DeviceMemory, seconds: float, top: float) -> None:
    """A curve of bytes with the device's budget as a line, from 0 at the bottom to the larger of budget and peak."""
    bottom, most = top + CURVE - 4, max(memory.budget, memory.peak, 1)
    up = (CURVE - 6) / most

    def across(time: float) -> float:
        return LEFT + min(time, seconds) * scale_of(seconds)

    places = [(LEFT, bottom)]
    for time, level in memory.steps:
        places += [(across(time), places[-1][1]), (across(time), bottom - level * up)]
    places += [(across(seconds), places[-1][1]), (across(seconds), bottom)]
    add(chart, "polygon", "memory", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    line = bottom - memory.budget * up
    add(chart, "line", "budget", x1=LEFT, x2=WIDTH - RIGHT, y1=line, y2=line)
    write_text(chart, LEFT - 6, bottom - 4, f"{size(memory.peak)}", anchor="end")


def _page(found: Timeline) -> Page:
    lacking = found.out_of_memory
    fullest = max(found.memory, key=lambda one: one.peak / max(one.budget, 1))
    return Page(
        title="Simulated run",
        subtitle=f"{count(found.plan.size, 'device')}, {count(len(found.plan.stages), 'stage')}; nothing was run.",
        tiles=(
            Tile("time", span_of_time(found.seconds)),
            Tile("mini-batch", span_of_time(found.step_s), "of the first pass over the samples"),
            Tile("sent", size(found.bytes_sent), "between devices"),
            Tile("memory", percent(fullest.peak / max(fullest.budget, 1)), f"of {fullest.device}, the fullest"),
            Tile("fits", "no" if lacking else "yes", ", ".join(one.device for one in lacking)),
        ),
        sections=(_phases(found), _devices(found), plan_section(found.plan.to_json())),
        footer="Written by pac simulate.",
    )


def _phases(found: Timeline) -> Section:
    rows = tuple(
        (
            phase.name,
            span_of_time(phase.seconds),
            *(size(amount) for amount in (phase.bytes_sent, phase.bytes_written, phase.bytes_read)),
        )
        for phase in found.phases
    )
    columns = (*words("phase"), *numbers("time", "sent", "entries written", "entries read"))
    return Section("Phases", tables=(Table("Phases", columns, rows),))


def _devices(found: Timeline) -> Section:
    rows = tuple(_device_rows(found))
    columns = (*words("device"), *numbers("computing", "share idle", "peak memory", "memory from the cache", "budget"))
    figure = Figure(
        "What each device would do",
        drawn(found),
        Table("One mini-batch", columns, rows),
        legend=tuple((kind, swatch(kind)) for kind in _kinds(found)),
        caption="A mini-batch of the first pass, and one from the cache. F2 is the forward pass of micro-batch 2, B2 "
        "its backward pass; grey is idle. Below each device its memory, with its budget as a broken line.",
        wide=True,
    )
    return Section("One mini-batch", figures=(figure,))


def _device_rows(found: Timeline) -> Iterator[tuple[str, ...]]:
    memory = {one.device: one for one in found.memory}
    for share in shares(found.spans):
        own = memory[share.device]
        taken = (size(amount) for amount in (own.peak, own.cached, own.budget))
        yield share.device, span_of_time(share.working), percent(share.bubble), *taken


def _rates(fitting: Sequence[Scaled], *, named: bool = False) -> Markup:
    return curves("Samples a second by number of devices", _curves(fitting), "devices", named=named)


def _curves(fitting: Sequence[Scaled]) -> list[Curve]:
    first = Curve("first pass", tuple((one.devices, one.first_rate) for one in fitting))
    cached = Curve("from the cache", tuple((one.devices, one.cached_rate) for one in fitting if one.cached_rate))
    return [curve for curve in (first, cached) if curve.points]


def _rates_page(found: Sequence[Scaled]) -> Page:
    fitting = [one for one in found if one.timeline is not None]
    rows = tuple(
        (str(one.devices), *(f"{rate:.2f}" for rate in (one.first_rate, one.cached_rate)), span_of_time(one.seconds))
        if one.timeline
        else (str(one.devices), NO_RATE, "", "")
        for one in found
    )
    figure = Figure(
        "Samples a second",
        _rates(fitting),
        Table("By devices", numbers("devices", "first pass", "from the cache", "time of the run"), rows),
        legend=tuple((curve.name, line_mark(number)) for number, curve in enumerate(_curves(fitting))),
    )
    return Page(
        "Throughput by number of devices",
        f"Planned by {fitting[0].scheduler}; nothing was run.",
        (),
        (Section("Throughput", figures=(figure,)),),
        "Written by pac simulate.",
    )
