"""Curves over the epochs, and bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pac_core.report.svg import Element, add, markup, picture, round_steps, write_text

WIDTH, HEIGHT = 360.0, 214.0
"""As wide as a phone, so that text is not shrunk there."""

LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 32.0

COLOURS = 6
"""Curves that the style sheet tells apart."""


@dataclass(frozen=True)
class Curve:
    """Values by whole numbers, such as epochs; epoch 0 is before training."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Bar:
    """A bar with its value in words."""

    name: str
    value: float
    text: str


def curves(title: str, drawn: Sequence[Curve], across_is: str = "epoch", *, named: bool = False) -> Markup:
    """Lines with a marker at every value, on common axes.

    Args:
        across_is: what the horizontal axis counts.
        named: whether the curves' names stand in the picture.
    """
    values = [y for curve in drawn for _, y in curve.points]
    numbers = [x for curve in drawn for x, _ in curve.points]
    steps = round_steps(min(values), max(values))
    first, last = min(numbers), max(max(numbers), min(numbers) + 1)

    def across(number: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (number - first) / (last - first)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - steps[0]) / (steps[-1] - steps[0])

    chart = picture(WIDTH, HEIGHT, title, "chart")
    _axes(chart, steps, range(first, max(numbers) + 1), across, up)
    write_text(chart, WIDTH - RIGHT, HEIGHT - 4, across_is, anchor="end")
    for number, curve in enumerate(drawn):
        _curve(chart, f"c{number % COLOURS}", [(across(x), up(y)) for x, y in curve.points])
        if named:
            below = TOP + 14 * (number + 1)
            add(chart, "line", f"curve c{number % COLOURS}", x1=LEFT + 8, x2=LEFT + 36, y1=below - 4, y2=below - 4)
            write_text(chart, LEFT + 42, below, curve.name)
    return markup(chart)


def _axes(
    chart: Element,
    steps: Sequence[float],
    numbers: range,
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> None:
    for step in steps:
        add(chart, "line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up(step), y2=up(step))
        write_text(chart, LEFT - 6, up(step) + 4, f"{step:.6g}", anchor="end")
    for number in numbers[:: -(-len(numbers) // 8)]:
        write_text(chart, across(number), HEIGHT - 17, str(number), anchor="middle")


def _curve(chart: Element, colour: str, places: Sequence[tuple[float, float]]) -> None:
    add(chart, "polyline", f"curve {colour}", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    if len(places) <= 40:
        for x, y in places:
            add(chart, "circle", f"dot {colour}", cx=x, cy=y, r=3)


def bars(title: str, drawn: Sequence[Bar]) -> Markup:
    """Horizontal bars, one below the other, each under its name and value."""
    row = 34.0
    chart = picture(WIDTH, row * len(drawn), title, "chart")
    longest = max(bar.value for bar in drawn) or 1.0
    for number, bar in enumerate(drawn):
        top = row * number
        write_text(chart, 0, top + 13, bar.name)
        write_text(chart, WIDTH, top + 13, bar.text, anchor="end")
        add(chart, "rect", "trough", x=0, y=top + 18, width=WIDTH, height=9, rx=2)
        add(chart, "rect", "bar c0", x=0, y=top + 18, width=WIDTH * bar.value / longest, height=9, rx=2)
    return markup(chart)
