"""What devices did during one mini-batch, as data: the boxes of a timeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

SpanKind = Literal["forward", "backward", "send", "wait", "reduce", "update"]

WORK = ("forward", "backward", "update")
"""Kinds during which a device computes; during the others, and between spans, it does not."""


@dataclass(frozen=True)
class Span:
    """Something that a device did without a break.

    Attributes:
        device: its name.
        kind: ``"forward"``, ``"backward"`` and ``"update"`` are computing; ``"send"``, ``"wait"`` and ``"reduce"`` (the
            group's gradients are summed) are not.
        micro_batch: number of the micro-batch; None where it is about all of them.
        start_s, end_s: seconds on a clock that all devices of a timeline share.
    """

    device: str
    kind: SpanKind
    micro_batch: int | None
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(self.end_s - self.start_s, 0.0)


def by_device(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """The spans of each device in the order of their beginnings; devices in the order in which they come."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.device, []).append(span)
    return {device: sorted(own, key=lambda span: span.start_s) for device, own in found.items()}


def working_seconds(spans: Sequence[Span]) -> float:
    """Seconds during which at least one of a device's spans is computing.

    >>> working_seconds([Span("a", "forward", 0, 0.0, 2.0), Span("a", "backward", 0, 1.0, 3.0)])
    3.0
    """
    total, until = 0.0, float("-inf")
    for span in sorted((span for span in spans if span.kind in WORK), key=lambda span: span.start_s):
        total += max(span.end_s - max(span.start_s, until), 0.0)
        until = max(until, span.end_s)
    return total
