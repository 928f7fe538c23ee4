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
    start, end = _limits(spans)
    height = TOP + ROW * len(rows)
    chart = picture(WIDTH, height, f"what {len(rows)} devices did in one mini-batch", "timeline")
    scale = (WIDTH - LEFT - RIGHT) / max(end - start, 1e-9)
    _clock(chart, end - start, scale, height)
    for number, (device, own) in enumerate(rows.items()):
        top = TOP + ROW * number
        write_text(chart, LEFT - 6, top + 18, _short(device), anchor="end")
        add(chart, "rect", "trough", x=LEFT, y=top + 3, width=WIDTH - LEFT - RIGHT, height=ROW - 6)
        for span in own:
            _box(chart, span, LEFT + (span.start_s - start) * scale, top + 3, span.seconds * scale)
    return markup(chart)


def shares(spans: Sequence[Span]) -> list[Share]:
    """How each device spent the time from the first beginning to the last end."""
    start, end = _limits(spans)
    whole = end - start
    found = []
    for device, own in by_device(spans).items():
        working = working_seconds(own)
        found.append(Share(device, working, whole - working, (whole - working) / whole if whole else 0.0))
    return found


def _limits(spans: Sequence[Span]) -> tuple[float, float]:
    return min(span.start_s for span in spans), max(span.end_s for span in spans)


def _clock(chart: Element, seconds: float, scale: float, height: float) -> None:
    """Vertical lines at round milliseconds."""
    for step in round_steps(0.0, seconds * 1000, 8):
        x = LEFT + step / 1000 * scale
        if x <= WIDTH - RIGHT:
            add(chart, "line", "grid", x1=x, x2=x, y1=TOP - 4, y2=height)
            write_text(chart, x, TOP - 8, f"{step:g} ms", anchor="middle")


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
