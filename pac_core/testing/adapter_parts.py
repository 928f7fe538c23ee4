"""What the tests of `AdapterSuite` share: tiny backbones, random taps, and running a side network by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pac_core.backbones import load_backbone
from pac_core.contracts.adapter import Memory, Rows, SideNetwork, Taps
from pac_core.contracts.backbone import ENCODER, Backbone, BackboneSource, tap_indices
from pac_core.registry import Registry
from pac_core.testing.tiny import tiny_model

WHOLE = 1e-12
"""Absolute difference within which two ways of computing the same thing agree, in float64."""

HALF = 0.05
"""Relative difference that reading taps in bfloat16 may make to a side network's last state."""


@cache
def tiny_backbone(family: str, dtype: torch.dtype = torch.float64) -> Backbone:
    """The frozen tiny model of a family; one instance for all, since nothing may change it."""
    return load_backbone(BackboneSource(model=tiny_model(family, dtype=dtype)), Registry())


def random_taps(
    side: SideNetwork, lengths: Sequence[int], *, sources: Sequence[int] = (), seed: int = 0, pairs: bool = False
) -> dict[str, Taps]:
    """Taps of random numbers for every stream that ``side`` reads.

    Args:
        side: the side network.
        lengths: tokens of each row of the target stream.
        sources: tokens of each row of the encoder stream beside it.
        seed: of the numbers.
        pairs: whether each row of the target stream holds two texts, cut in the middle.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for stream in side.reads:
        of_rows = tuple(lengths if stream == side.target else sources)
        count = len(tap_indices(side.info.stream(stream).layers, side.config.tap_every))
        values = torch.randn(count, sum(of_rows), side.info.hidden_size, generator=generator, dtype=torch.float64)
        segments = torch.cat([(torch.arange(n) >= n / 2).long() for n in of_rows]) if pairs else None
        match = torch.randn(count, sum(of_rows), generator=generator, dtype=torch.float64) if pairs else None
        dtype = next(side.parameters()).dtype
        rows = Rows(of_rows, segments, None if match is None else match.to(dtype))
        found[stream] = Taps(values.to(dtype), rows)
    return found


def only_row(taps: dict[str, Taps], row: int) -> dict[str, Taps]:
    """The taps of one row of a batch."""
    found = {}
    for stream, those in taps.items():
        chosen = those.rows.row_of == row
        segments = None if those.rows.segments is None else those.rows.segments[chosen]
        match = None if those.rows.match is None else those.rows.match[:, chosen]
        found[stream] = Taps(those.values[:, chosen], Rows((those.rows.lengths[row],), segments, match))
    return found


def stirred(side: SideNetwork, seed: int = 0) -> SideNetwork:
    """``side`` as training may leave it: every parameter moved off its first value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in side.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(parameter) * 0.3)
    return side


def chain(side: SideNetwork, taps: dict[str, Taps]) -> Tensor:
    """h by calling enter, each layer and exit, as the contract writes it."""
    memory = None
    for stream in side.reads:
        values, rows = taps[stream].values, taps[stream].rows
        state = side.enter(stream, values[0], rows)
        for index in range(1, len(values)):
            state = side.layer(stream, index, values[index], state, rows, memory=memory)
        if stream != side.target:
            memory = Memory(state, rows)
    return side.exit(side.target, rows.unpad(state), values[-1])


def slices(side: SideNetwork, bounds: Sequence[dict[str, tuple[int, int]]]) -> list[SideNetwork]:
    """Copies of ``side``, each keeping its range of side layers in every stream."""
    parts = []
    for held in bounds:
        part = copy.deepcopy(side)
        for stream, (first, last) in held.items():
            part.keep(stream, first, last)
        parts.append(part)
    return parts


def sliced_chain(
    parts: Sequence[SideNetwork], bounds: Sequence[dict[str, tuple[int, int]]], taps: dict[str, Taps]
) -> Tensor:
    """h by running slices one after another, each only what it kept."""
    memory = None
    target = parts[0].target
    for stream in parts[0].reads:
        values, rows = taps[stream].values, taps[stream].rows
        state = parts[0].enter(stream, values[0], rows)
        for part, held in zip(parts, bounds, strict=True):
            first, last = held[stream]
            for index in range(first + 1, last + 1):
                state = part.layer(stream, index, values[index], state, rows, memory=memory)
        if stream == ENCODER and stream != target:
            memory = Memory(state, rows)
    return parts[-1].exit(target, rows.unpad(state), values[-1])


def cut_bounds(side: SideNetwork, cuts: Sequence[float]) -> list[dict[str, tuple[int, int]]]:
    """Ranges of side layers for len(cuts) + 1 slices, cut after these fractions of every stream's side layers."""
    places = {}
    for stream in side.reads:
        layers = len(tap_indices(side.info.stream(stream).layers, side.config.tap_every)) - 1
        places[stream] = [0, *(min(max(round(cut * layers), 1), layers) for cut in sorted(cuts)), layers]
    return [{name: (at[i], at[i + 1]) for name, at in places.items()} for i in range(len(cuts) + 1)]


def in_steps(side: SideNetwork, taps: dict[str, Taps], cuts: Sequence[int]) -> Tensor:
    """h (rows, tokens, d) of rows of one length, fed up to each of ``cuts`` in turn, with a past."""
    target = taps[side.target]
    rows, width = len(target.rows.lengths), target.rows.width
    values = target.values.view(len(target.values), rows, width, -1)
    memory = side.remember(taps[ENCODER]) if len(side.reads) == 2 else None
    past: Any = side.new_past()
    steps = []
    for start, end in zip((0, *cuts), (*cuts, width), strict=True):
        part = Taps(values[:, :, start:end].flatten(1, 2), Rows((end - start,) * rows))
        steps.append(side({side.target: part}, memory=memory, past=past).view(rows, end - start, -1))
    return torch.cat(steps, dim=1)
