"""A simulated plan as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from pac_core.planning.scaling import Scaled
from pac_core.planning.simulate import Timeline
from pac_core.spans import Span, by_device

WIDTH = 72
"""Characters of a mini-batch."""

LETTERS = {"forward": "F", "backward": "B", "reduce": "R", "update": "U"}
MEANING = {"F": "forward", "B": "backward", "R": "sums gradients", "U": "updates weights"}
IDLE = "."

GB = 1e9


def report(timeline: Timeline) -> str:
    """Plan, phases, memory, and the timelines of a mini-batch of the first pass and of one from the cache."""
    parts = [timeline.plan.table(), _phases(timeline), _memory(timeline)]
    parts.append(f"{timeline.phases[0].name}, one mini-batch:\n{chart(timeline.spans, timeline.step_s)}")
    if timeline.cached_spans:
        parts.append(f"from the cache, one mini-batch:\n{chart(timeline.cached_spans, timeline.cached_step_s)}")
    return "\n\n".join(parts)


def rates(found: Sequence[Scaled]) -> str:
    """Throughput by number of devices, a line each."""
    lines = ["devices  first pass    cached  (samples a second)   stages"]
    for one in found:
        if one.timeline is None:
            lines.append(f"{one.devices:>7}  {one.why}")
            continue
        groups = "-".join(str(len(stage.devices)) for stage in one.timeline.plan.stages)
        cached = f"{one.cached_rate:>10.2f}" if one.cached_rate else f"{'':>10}"
        lines.append(f"{one.devices:>7}{one.first_rate:>12.2f}{cached}{'':>23}{groups}")
    return "\n".join(lines)


def chart(spans: Sequence[Span], seconds: float, width: int = WIDTH) -> str:
    """One line a device: what it does most of the time in each of ``width`` equal parts of ``seconds``.

    >>> print(chart([Span("a", "forward", 0, 0.0, 1.0), Span("a", "backward", 0, 3.0, 4.0)], 4.0, 8))
    a  FF....BB
    F forward, B backward, . waits; 4.000 s
    """
    own = by_device(spans)
    longest = max(map(len, own), default=0)
    lines = [f"{name.ljust(longest)}  {_line(found, seconds / width, width)}" for name, found in own.items()]
    letters = dict.fromkeys(LETTERS[span.kind] for span in spans if span.kind in LETTERS)
    legend = ", ".join(f"{letter} {MEANING[letter]}" for letter in letters)
    return "\n".join([*lines, f"{legend}, {IDLE} waits; {seconds:.3f} s"])


def _line(spans: Sequence[Span], part: float, width: int) -> str:
    return "".join(_letter(spans, i * part, (i + 1) * part) for i in range(width))


def _letter(spans: Sequence[Span], start: float, end: float) -> str:
    shares = {IDLE: end - start}
    for span in spans:
        common = max(min(span.end_s, end) - max(span.start_s, start), 0.0)
        letter = LETTERS.get(span.kind, IDLE)
        shares[letter] = shares.get(letter, 0.0) + common
        shares[IDLE] -= common
    return max(shares, key=lambda letter: shares[letter])


def _phases(timeline: Timeline) -> str:
    lines = [
        f"{phase.name:<8}{phase.seconds:>12.1f} s{phase.bytes_sent / GB:>12.3f} GB sent" for phase in timeline.phases
    ]
    return "\n".join([*lines, f"{'all':<8}{timeline.seconds:>12.1f} s{timeline.bytes_sent / GB:>12.3f} GB sent"])


def _memory(timeline: Timeline) -> str:
    longest = max(len(memory.device) for memory in timeline.memory)
    lines = []
    for memory in timeline.memory:
        lack = f", {memory.missing / GB:.2f} GB are missing" if memory.missing else ""
        lines.append(f"{memory.device.ljust(longest)}  {memory.peak / GB:.2f} of {memory.budget / GB:.2f} GB{lack}")
    return "\n".join(lines)
