"""Tokenised training data: what reaches the backbone, and what is to be learnt from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TaskKind = Literal["classification", "regression", "seq2seq", "causal-lm"]

IGNORE = -100
"""Label of a token that takes no part in the loss."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One token sequence that goes through one stream of the backbone: one cache entry.

    Attributes:
        stream: ``"encoder"`` or ``"decoder"``.
        input_ids: (tokens,) int32, never padding, special tokens included.
        token_type_ids: (tokens,) int8 for families that have them, else None.
        context: the encoder segment that a decoder segment attends to; None without cross attention.
    """

    stream: str
    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8] | None = None
    context: Segment | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def content(self) -> bytes:
        """Everything that this segment's taps depend on beside the backbone, so written that different ones differ."""
        types = b"" if self.token_type_ids is None else np.ascontiguousarray(self.token_type_ids, "<i4").tobytes()
        parts = [self.stream.encode(), np.ascontiguousarray(self.input_ids, "<i4").tobytes(), types]
        if self.context is not None:
            parts.append(self.context.content)
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


@dataclass(frozen=True, eq=False)
class Example:
    """One sample as the model sees it.

    A text, or a pair that the backbone reads jointly, is one segment. A pair that the backbone reads apart is two
    segments of one stream, which the side network then sees as one row. A seq2seq sample is an encoder segment and a
    decoder segment with the former as its context.

    Attributes:
        segments: what goes through the backbone.
        target: class index (int), number (float), label ids (tokens of the last segment,) int64 with `IGNORE` where no
            prediction is learnt: ``target[t]`` is what the hidden state at token t shall predict (already shifted);
            None when unknown.
        source: where the sample came from, as ``file:line``, for errors.
    """

    segments: tuple[Segment, ...]
    target: int | float | NDArray[np.int64] | None
    source: str = ""

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)


@dataclass(frozen=True)
class Task:
    """What is predicted; saved with an adapter.

    Attributes:
        kind: the task.
        labels: names of the classes in index order (classification only).
        pair: the samples have two texts.
        apart: the backbone reads the texts of a pair apart, as two segments.
    """

    kind: TaskKind
    labels: tuple[str, ...] = ()
    pair: bool = False
    apart: bool = False

    @property
    def generates(self) -> bool:
        """Whether the answer is text from the language-model head."""
        return self.kind in ("seq2seq", "causal-lm")

    @property
    def outputs(self) -> int:
        """Outputs of the trainable head: classes, or 1 for regression, or 0 where the language-model head is used."""
        return {"classification": len(self.labels), "regression": 1}.get(self.kind, 0)


def length_batches(
    examples: Sequence[Example], batch_size: int, *, generator: np.random.Generator | None = None, pool: int = 50
) -> list[list[int]]:
    """Indices of ``examples`` in batches of similar length.

    Without a generator the whole data set is sorted, longest first. With one, samples are shuffled, sorted inside
    pools of ``pool`` batches, cut into batches, and the batches are shuffled: random enough to learn from, with little
    padding.
    """
    order = np.arange(len(examples)) if generator is None else generator.permutation(len(examples))
    lengths = np.array([len(examples[i]) for i in order])
    chunk = len(order) if generator is None else batch_size * pool
    batches: list[list[int]] = []
    for start in range(0, len(order), max(chunk, 1)):
        part = order[start : start + chunk]
        ranked = part[np.argsort(-lengths[start : start + chunk], kind="stable")]
        batches += [ranked[i : i + batch_size].tolist() for i in range(0, len(ranked), batch_size)]
    if generator is not None:
        generator.shuffle(batches)
    return batches
