"""The timeline of one mini-batch: a row for each device, a box for each thing it did, gaps where it did nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pac_core.report.svg import Element, add, markup, picture, printable, round_steps, write_text
from pac_core.spans import Span, by_device, working_seconds

WIDTH, ROW, TOP = 760.0, 30.0, 20.0
LEFT, RIGHT = 110.0, 10.0
NAME_LETTERS = 15

LONG = 5.0
"""Seconds from which on the clock counts in seconds."""


@dataclass(frozen=True)
class Share:
    """How a device spent the mini-batch: seconds computing, seconds not, and the latter's share of all."""

    device: str
    working: float
    idle: float
    bubble: float


def timeline(spans: Sequence[Span]) -> Markup:
    """The picture; ``spans`` is not empty."""
    rows = by_device(spans)
    start, end = limits(spans)
    height = TOP + ROW * len(rows)
    chart = picture(WIDTH, height, f"what {len(rows)} devices did in one mini-batch", "timeline")
    draw_clock(chart, end - start, TOP, height)
    for number, (device, own) in enumerate(rows.items()):
        draw_row(chart, device, own, (start, end), TOP + ROW * number)
    return markup(chart)


def draw_row(chart: Element, device: str, own: Sequence[Span], during: tuple[float, float], top: float) -> None:
    """What a device did ``during`` some seconds, `ROW` high."""
    scale = scale_of(during[1] - during[0])
    write_text(chart, LEFT - 6, top + 18, _short(device), anchor="end")
    add(chart, "rect", "trough", x=LEFT, y=top + 3, width=WIDTH - LEFT - RIGHT, height=ROW - 6)
    for span in own:
        _box(chart, span, LEFT + (span.start_s - during[0]) * scale, top + 3, span.seconds * scale)


def draw_clock(chart: Element, seconds: float, top: float, bottom: float) -> None:
    """Vertical lines at round times, which are written above ``top``."""
    unit, factor = ("s", 1.0) if seconds >= LONG else ("ms", 1000.0)
    for step in round_steps(0.0, seconds * factor, 8):
        x = LEFT + step / factor * scale_of(seconds)
        if x <= WIDTH - RIGHT + 1e-6:
            add(chart, "line", "grid", x1=x, x2=x, y1=top - 4, y2=bottom)
            write_text(chart, x, top - 8, f"{step:g} {unit}", anchor="end" if x > WIDTH - 2 * RIGHT else "middle")


def scale_of(seconds: float) -> float:
    """Units of the picture that a second takes, where that many are drawn."""
    return (WIDTH - LEFT - RIGHT) / max(seconds, 1e-9)


def shares(spans: Sequence[Span]) -> list[Share]:
    """How each device spent the time from the first beginning to the last end."""
    start, end = limits(spans)
    whole = end - start
    found = []
    for device, own in by_device(spans).items():
        working = working_seconds(own)
        found.append(Share(device, working, whole - working, (whole - working) / whole if whole else 0.0))
    return found


def limits(spans: Sequence[Span]) -> tuple[float, float]:
    """The first beginning and the last end."""
    return min(span.start_s for span in spans), max(span.end_s for span in spans)


def _box(chart: Element, span: Span, x: float, y: float, width: float) -> None:
    box = add(chart, "rect", f"box {span.kind}", x=x, y=y, width=max(width, 0.6), height=ROW - 6, rx=1.5)
    number = "" if span.micro_batch is None else f" {span.micro_batch}"
    told = f"{span.device}: {span.kind}{number}, {span.seconds * 1000:.1f} ms"
    add(box, "title", "").text = printable(told)
    name = f"{span.kind[0].upper()}{number.strip()}" if span.kind in ("forward", "backward") else ""
    if name and width > 7 * len(name) + 2:
        write_text(chart, x + width / 2, y + 16, name, "inside", "middle")


def _short(device: str) -> str:
    return device if len(device) <= NAME_LETTERS else f"{device[: NAME_LETTERS - 1]}…"
