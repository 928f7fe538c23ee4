"""What all devices did during one mini-batch, on one clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.scheduler import Plan
from pac_core.contracts.transport import Transport
from pac_core.spans import Span, SpanKind

ROUNDS = 10
"""Questions for the time that each device is asked; the one that came back soonest counts."""

_KINDS: tuple[SpanKind, ...] = get_args(SpanKind)


class Recording:
    """Notes what a device does.

    Args:
        device: its name.

    Attributes:
        spans: so far, in seconds of `time.perf_counter`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.spans: list[Span] = []

    @contextmanager
    def span(self, kind: SpanKind, micro_batch: int | None) -> Iterator[None]:
        """Within it the device does this."""
        began = time.perf_counter()
        yield
        self.spans.append(Span(self.device, kind, micro_batch, began, time.perf_counter()))


def gather_spans(
    transport: Transport,
    plan: Plan,
    spans: Sequence[Span],
    *,
    timeout: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Span]:
    """The spans of all devices, in seconds since the first of them began; for rank 0, others get none. Every device
    calls it, soon after the mini-batch: clocks drift apart by some microseconds a second.

    Rank 0 asks each device for its time, `ROUNDS` times, and takes the answer for the time half way between question
    and answer. The answer that came soonest counts, so that a clock is wrong by half of the shortest round trip at
    most.

    Args:
        spans: this device's, as `Pipeline.recorded` gave them.
        clock: what they were measured with.

    Raises:
        PeerLost, TransportTimeout: a device is gone or does not answer.
    """
    if transport.rank != 0:
        _tell(transport, spans, timeout, clock)
        return []
    found = list(spans)
    for rank in range(1, transport.size):
        ahead = _clock_ahead(transport, rank, timeout, clock)
        message = transport.irecv(rank, Tag("spans")).wait(timeout)
        found += _unpacked(plan.devices[rank], message.tensors["spans"], ahead)
    first = min((span.start_s for span in found), default=0.0)
    return [Span(s.device, s.kind, s.micro_batch, s.start_s - first, s.end_s - first) for s in found]


def _clock_ahead(transport: Transport, rank: int, timeout: float | None, clock: Callable[[], float]) -> float:
    """Seconds by which the clock of ``rank`` is ahead of this device's."""
    best = (float("inf"), 0.0)
    for turn in range(ROUNDS):
        answer = transport.irecv(rank, Tag("clock", 1, turn))
        asked = clock()
        question = transport.isend(rank, Message(Tag("clock", 0, turn)), timeout=timeout)
        theirs = answer.wait(timeout).header["now"]
        answered = clock()
        question.wait(timeout)
        best = min(best, (answered - asked, theirs - (asked + answered) / 2))
    return best[1]


def _tell(transport: Transport, spans: Sequence[Span], timeout: float | None, clock: Callable[[], float]) -> None:
    questions = [transport.irecv(0, Tag("clock", 0, turn)) for turn in range(ROUNDS)]
    for turn, question in enumerate(questions):
        question.wait(timeout)
        transport.isend(0, Message(Tag("clock", 1, turn), {"now": clock()}), timeout=timeout).wait(timeout)
    transport.isend(0, Message(Tag("spans"), {}, {"spans": _packed(spans)}), timeout=timeout).wait(timeout)


def _packed(spans: Sequence[Span]) -> Tensor:
    """(spans, 4) float64: kind as a number, micro-batch or -1, start and end in seconds."""
    lines = [(_KINDS.index(s.kind), -1 if s.micro_batch is None else s.micro_batch, s.start_s, s.end_s) for s in spans]
    return torch.tensor(lines, dtype=torch.float64).view(-1, 4)


def _unpacked(device: str, packed: Tensor, ahead: float) -> list[Span]:
    return [
        Span(device, _KINDS[int(kind)], None if micro < 0 else int(micro), start - ahead, end - ahead)
        for kind, micro, start, end in packed.tolist()
    ]
