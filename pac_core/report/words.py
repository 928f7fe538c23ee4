"""Numbers as people read them."""

from __future__ import annotations


def size(number: float) -> str:
    """Bytes.

    >>> size(3 * 2**20), size(900)
    ('3.0 MiB', '900 B')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while number >= 1024 and power + 1 < len(units):
        number, power = number / 1024, power + 1
    return f"{number:.{min(power, 1)}f} {units[power]}"


def span_of_time(seconds: float) -> str:
    """Seconds, or hours, minutes and seconds.

    >>> span_of_time(3.21), span_of_time(3725)
    ('3.2 s', '1 h 2 min 5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def amount(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def count(number: int, thing: str) -> str:
    """A number of things.

    >>> count(1, "device"), count(1200, "epoch"), count(2, "micro-batch")
    ('1 device', '1,200 epochs', '2 micro-batches')
    """
    plural = f"{thing}es" if thing.endswith("tch") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{share:.0%}"


def score(value: float) -> str:
    """A metric or loss.

    >>> score(0.91234), score(41.2)
    ('0.912', '41.2')
    """
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def phase_words(phase: str) -> str:
    """What goes on in a phase of a run."""
    words = {
        "load": "loading model and data",
        "fill": "filling the cache",
        "train-while-fill": "filling the cache and training",
        "cached": "training from the cache",
        "evaluate": "evaluating",
        "generate": "writing answers",
        "save": "saving",
    }
    return words.get(phase, phase)
