"""The rows of a micro-batch that one device works on: cut, joined, and as tensors for the way to the next stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.examples import Example, Segment
from pac_core.taps import of_stream

STATISTICS = "statistics"
"""Name of the one tensor of a `Part` that has a row for each example, not for each token."""

_STREAMS = (ENCODER, DECODER)
_SEGMENTS, _IDS, _TYPES, _TARGET = "@segments", "@ids", "@types", "@target"


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a micro-batch, and what the stages before have made of them.

    Attributes:
        examples: the rows.
        total: predictions in the whole batch, which the loss is a mean over.
        tensors: by name, without padding: for each stream begun ``<stream>.b`` (tokens, d), the backbone's hidden
            states, and, where the side network reads the stream, ``<stream>.a`` (tokens, channels), its states. For two
            texts read apart ``<stream>.match`` (tokens, taps) and `STATISTICS` (rows, statistics).
    """

    examples: Sequence[Example]
    total: int
    tensors: Mapping[str, Tensor]

    def rows(self, first: int, last: int) -> Part:
        """The rows [first, last)."""
        if (first, last) == (0, len(self.examples)):
            return self
        return Part(self.examples[first:last], self.total, rows_of_tensors(self.tensors, self.examples, first, last))


def rows_of_tensors(
    tensors: Mapping[str, Tensor], examples: Sequence[Example], first: int, last: int
) -> dict[str, Tensor]:
    """What of ``tensors``, named as in `Part`, belongs to the examples [first, last)."""
    if (first, last) == (0, len(examples)):
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        ends = [0, *accumulate(_lengths(name, examples))]
        found[name] = tensor[ends[first] : ends[last]]
    return found


def join_tensors(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of consecutive rows as those of all of them."""
    if len(pieces) == 1:
        return dict(pieces[0])
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def join(parts: Sequence[Part]) -> Part:
    """Consecutive rows as one part."""
    examples = [example for part in parts for example in part.examples]
    return Part(examples, parts[0].total, join_tensors([part.tensors for part in parts]))


def to_message(part: Part) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors that `from_message` makes the same part of; the examples' `Example.source` is left behind."""
    tensors = {name: tensor.detach() for name, tensor in part.tensors.items()}
    return {"total": part.total}, {**_pack(part.examples), **tensors}


def from_message(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Part:
    """The part that `to_message` was given."""
    carried = {name: tensor for name, tensor in tensors.items() if not name.startswith("@")}
    return Part(_unpack(tensors), header["total"], carried)


def _lengths(name: str, examples: Sequence[Example]) -> list[int]:
    if name == STATISTICS:
        return [1] * len(examples)
    stream = name.partition(".")[0]
    return [sum(map(len, of_stream(example, stream))) for example in examples]


def _pack(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Token ids and targets as int32 one after another; of each segment row, stream, length, place of its context, and
    whether it is the example's own or only a context."""
    flat: list[Segment] = []
    table = []
    for row, example in enumerate(examples):
        contexts = [s.context for s in example.segments if s.context is not None]
        extra = [c for c in contexts if not any(c is s for s in example.segments)]
        start = len(flat)
        flat += [*extra, *example.segments]
        for i, segment in enumerate(flat[start:]):
            context = next((j for j in range(start, len(flat)) if flat[j] is segment.context), -1)
            table.append((row, _STREAMS.index(segment.stream), len(segment), context, int(i >= len(extra))))
    packed = {
        _SEGMENTS: torch.tensor(table, dtype=torch.int32),
        _IDS: torch.from_numpy(np.concatenate([s.input_ids for s in flat]).astype(np.int32)),
    }
    if flat[0].token_type_ids is not None:
        types = [s.token_type_ids for s in flat if s.token_type_ids is not None]
        packed[_TYPES] = torch.from_numpy(np.concatenate(types).astype(np.int8))
    targets = [example.target for example in examples if example.target is not None]
    if targets and isinstance(targets[0], np.ndarray):
        packed[_TARGET] = torch.from_numpy(np.concatenate([np.asarray(t) for t in targets]).astype(np.int32))
    elif targets:
        packed[_TARGET] = torch.from_numpy(np.asarray(targets))  # int64 classes or float64 numbers
    return packed


def _unpack(tensors: Mapping[str, Tensor]) -> list[Example]:
    table = tensors[_SEGMENTS].tolist()
    ends = [0, *accumulate(length for _, _, length, _, _ in table)]
    ids = tensors[_IDS].numpy()
    types = tensors[_TYPES].numpy() if _TYPES in tensors else None
    segments: dict[int, Segment] = {}
    for place in sorted(range(len(table)), key=lambda i: table[i][3]):  # contexts first: they have none
        _, stream, _, context, _ = table[place]
        first, last = ends[place], ends[place + 1]
        own_types = None if types is None else types[first:last]
        segments[place] = Segment(_STREAMS[stream], ids[first:last], own_types, segments.get(context))
    rows: list[list[Segment]] = [[] for _ in range(1 + max(line[0] for line in table))]
    for place, (row, _, _, _, own) in enumerate(table):
        if own:
            rows[row].append(segments[place])
    return [Example(tuple(row), target) for row, target in zip(rows, _targets(rows, tensors.get(_TARGET)))]


def _targets(rows: Sequence[Sequence[Segment]], packed: Tensor | None) -> Sequence[Any]:
    """The targets of ``rows``: None, numbers, or the label ids (tokens of the last segment,) of each."""
    if packed is None:
        return [None] * len(rows)
    if packed.dtype != torch.int32:
        return packed.tolist()
    ends = [0, *accumulate(len(row[-1]) for row in rows)]
    return [packed[first:last].numpy().astype(np.int64) for first, last in pairwise(ends)]
