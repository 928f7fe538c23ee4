"""Walking through JSON text that is known to be valid, to know at which position, hence line, each value stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def json_items(text: str, at: int) -> Iterator[tuple[int, Any]]:
    """Position and value of each item of the array whose bracket is ``text[at]``.

    >>> list(json_items("[1, [2]]", 0))
    [(1, 1), (4, [2])]
    """
    at = _skip(text, at + 1)
    while text[at] != "]":
        value, end = _DECODER.raw_decode(text, at)
        yield at, value
        at = _next(text, end)


def json_members(text: str) -> Iterator[tuple[str, int, Any]]:
    """Key, position of the value and value of each member of the object that ``text`` is.

    >>> list(json_members('{"a": 1}'))
    [('a', 6, 1)]
    """
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, end) + 1)
        value, end = _DECODER.raw_decode(text, start)
        yield key, start, value
        at = _next(text, end)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _next(text: str, at: int) -> int:
    """Start of what follows a value that ended before ``at``, past a comma."""
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at
