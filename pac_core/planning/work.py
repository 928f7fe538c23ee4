"""What a simulated run works through, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

from pac_core.contracts.cluster import Job
from pac_core.errors import BadInput
from pac_core.planning.slowness import Slowness

CacheFormat = Literal["float32", "bfloat16", "int8"]

Fill = Literal["prefill", "train-while-fill"]

NUMBER_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0 + 4 / 64}
"""Bytes of a number; int8 has a float32 scale for each block of 64."""

TRAVELS_AS = {"int8": "float32"}
"""Formats in which entries travel from device to device, where they differ from those in which they are kept."""


@dataclass(frozen=True)
class Work:
    """What a run works through.

    Attributes:
        samples: of an epoch.
        epochs: all of them, the first included.
        caches: whether the first epoch keeps its taps and the others train from them; else all run the stages.
        prefill: whether the backbone runs alone ahead of training, all of whose epochs then are from the cache; else it
            runs while the first epoch trains.
        entries: number format of the cache; that of the backbone if None.
        overlaps: whether entries travel to their owners while the first epoch from the cache trains; else before it.
        hands_out: whether devices give each other the weights of the side network before the first epoch too, as this
            program does.
        scaled: samples that the backbone runs for beforehand, so that scales can be set from them; with ``hands_out``.
        sums_beside: whether gradients are summed while the backward pass of an epoch from the cache still goes on.
        slowness: of devices.

    Raises:
        BadInput: a format is not known, or a prefill has no cache.
    """

    samples: int
    epochs: int = 1
    caches: bool = True
    prefill: bool = False
    entries: CacheFormat | None = None
    overlaps: bool = False
    hands_out: bool = False
    scaled: int = 0
    sums_beside: bool = False
    slowness: Slowness = field(default_factory=Slowness)

    def __post_init__(self) -> None:
        if self.entries not in (None, *get_args(CacheFormat)):
            raise BadInput(
                f"cache format '{self.entries}' is not known; choose from {', '.join(get_args(CacheFormat))}"
            )
        if self.prefill and not self.caches:
            raise BadInput("a prefill fills the cache, which this run does not have; leave one of the two out")

    @classmethod
    def of_run(
        cls,
        samples: int,
        epochs: int,
        fill: Fill = "prefill",
        entries: CacheFormat = "bfloat16",
        slowness: Slowness | None = None,
    ) -> Self:
        """What ``pac finetune`` does, with its own defaults: entries travel while the first cached epoch trains."""
        return cls(
            samples,
            epochs,
            prefill=fill == "prefill",
            entries=entries,
            overlaps=True,
            slowness=slowness or Slowness(),
        )

    @property
    def cached_epochs(self) -> int:
        """Epochs that train from the cache."""
        return 0 if not self.caches else self.epochs - (not self.prefill)

    def kept(self, sums: Sequence[float], job: Job) -> tuple[float, ...]:
        """Bytes of entries as they are kept, given those in the backbone's format."""
        return _scaled(sums, job.dtype, self.entries or job.dtype)

    def travelling(self, sums: Sequence[float], job: Job) -> tuple[float, ...]:
        """Bytes of entries as they travel, given those that are kept."""
        kept = self.entries or job.dtype
        return _scaled(sums, kept, TRAVELS_AS.get(kept, kept))


def _scaled(sums: Sequence[float], given: str, wanted: str) -> tuple[float, ...]:
    if given == wanted:
        return tuple(sums)
    factor = NUMBER_BYTES[wanted] / NUMBER_BYTES[given]
    return tuple(factor * size for size in sums)
