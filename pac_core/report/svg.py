"""SVG elements for inlining in HTML. Text is escaped by the serialiser, and colours are the page's style sheet's."""

from __future__ import annotations

import math
import re
import unicodedata
from xml.etree import ElementTree

from markupsafe import Markup

Element = ElementTree.Element


def printable(text: str) -> str:
    """``text`` without control characters, which neither HTML nor SVG may hold, and lone surrogates.

    >>> printable("a\\x00b\\tc")
    'ab c'
    """
    spaced = (" " if letter in "\t\r\n" else letter for letter in text)
    return "".join(letter for letter in spaced if unicodedata.category(letter) not in ("Cc", "Cs"))


def picture(width: float, height: float, title: str, style: str) -> Element:
    """An empty picture of ``width`` x ``height`` units that scales with its place; ``style`` is its class."""
    given = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": printable(title), "class": style}
    return Element("svg", given)


def add(parent: Element, kind: str, style: str, **places: float | str) -> Element:
    """A child of ``parent``; an underscore in a name stands for a hyphen."""
    given = {name.replace("_", "-"): f"{v:.6g}" if isinstance(v, float) else str(v) for name, v in places.items()}
    return ElementTree.SubElement(parent, kind, {"class": style, **given})


def write_text(parent: Element, x: float, y: float, text: str, style: str = "label", anchor: str = "start") -> None:
    """Text whose baseline begins (or ends, or has its middle) at ``x``, ``y``."""
    add(parent, "text", style, x=float(x), y=float(y), text_anchor=anchor).text = printable(text)


def markup(element: Element) -> Markup:
    """The picture as text that needs no further escaping."""
    return Markup(ElementTree.tostring(element, encoding="unicode"))


def standalone(drawn: Markup, style: str) -> str:
    """A picture as the text of a file of its own.

    Args:
        drawn: as `markup` gives it.
        style: the page's style sheet; its colours are written out, since few programs but browsers know variables.
    """
    light = style.partition("{")[2].partition("}")[0]
    colours = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", light))
    rules = re.sub(r"var\((--[\w-]+)\)", lambda found: colours.get(found[1], "none"), _rules(style))
    head = str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    begin, end, rest = head.partition(">")
    return f"{begin}{end}<style>{rules}</style>{rest}\n"


def _rules(style: str) -> str:
    """The rules of a style sheet that are about what pictures hold: those of classes and of text."""
    return "\n".join(line for line in style.splitlines() if re.match(r"(\.|text)[\w.]* ?\{", line.strip()))


def round_steps(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers that enclose [low, high], ascending and evenly spaced.

    >>> round_steps(0.13, 0.92)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    size = max(abs(low), abs(high), 1e-6)
    spread = high - low if high - low > 1e-6 * size else size
    rough = spread / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.99)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]
