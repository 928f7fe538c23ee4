"""One pass after another over a few layers, each timed by itself, run as the runtime runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from pac_core.cache import ActivationCache
from pac_core.contracts.adapter import Memory, Taps
from pac_core.contracts.backbone import ENCODER
from pac_core.examples import Example
from pac_core.hardware import SHORT, fast_products
from pac_core.model import PacModel
from pac_core.planning.sample_model import sample_examples
from pac_core.runtime.parts import Part
from pac_core.runtime.stage import Stage, bind_share, chain
from pac_core.taps import of_stream, rows_of

PassName = Literal["backbone", "side forward", "side backward", "cached", "head forward", "head backward"]

Seconds = dict[tuple[str, PassName], float]
"""By stream and pass."""


@dataclass
class _Clock:
    seconds: Seconds = field(default_factory=dict)

    @contextmanager
    def over(self, stream: str, name: PassName) -> Iterator[None]:
        """Add the seconds that this takes to those of a pass."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.seconds[stream, name] = self.seconds.get((stream, name), 0.0) + took


class Probe:
    """Times the passes of a sample of a model.

    Args:
        model: as `pac_core.planning.sample_model.sample_model` makes it.
        layers: of each stream in the whole model, over which a stage's entry is spread.
        cache: what a stage reads its taps back from, as training does; in memory.
    """

    def __init__(self, model: PacModel, layers: Mapping[str, int], cache: ActivationCache) -> None:
        self.model = model
        self._layers = layers
        self._chain = chain(model.info, model.side.target)
        held = {stream.name: (0, stream.layers) for stream in self._chain}
        self._stage = Stage(model, held, bind_share(cache, model, held))

    def run(self, rows: int, tokens: int) -> Seconds:
        """Seconds of every pass over rows of so many tokens: of one layer, or of the head."""
        batch = sample_examples(self.model, rows, tokens)
        clock = _Clock()
        taps = self._in_stage(batch, clock)
        self._from_cache(batch, taps, clock)
        for parameter in self.model.parameters():
            parameter.grad = None
        return self._by_layer(clock.seconds, batch, taps)

    def _in_stage(self, batch: Sequence[Example], clock: _Clock) -> dict[str, Tensor]:
        """Both passes as `Stage` makes them, cut where one layer's share ends; returns the taps of each stream."""
        stage, part = self._stage, Part(batch, self.model.learnt(batch), {})
        cuts, taps = list[tuple[str, Tensor, Tensor]](), dict[str, Tensor]()
        with fast_products(_tokens(batch)):
            for stream in self._chain:
                with clock.over(stream.name, "backbone"):
                    part, found = stage.run_backbone(stream, part)
                if found is None:
                    continue
                taps[stream.name] = found
                with clock.over(stream.name, "side forward"):
                    part = stage.run_side(stream.name, part, found)
                root, leaf = _cut(part.tensors[f"{stream.name}.a"])
                cuts.append((stream.name, root, leaf))
                part = replace(part, tensors={**part.tensors, f"{stream.name}.a": leaf})
            with clock.over(self.model.side.target, "head forward"):
                loss = stage.loss(part)
        with fast_products(_short_tokens(batch)):
            with clock.over(self.model.side.target, "head backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            self._back(cuts, "side backward", clock)
        return taps

    def _from_cache(self, batch: Sequence[Example], taps: dict[str, Tensor], clock: _Clock) -> None:
        """Both passes through the side network alone, all of whose taps are there at once."""
        side, memory = self.model.side, None
        cuts = list[tuple[str, Tensor, Tensor]]()
        with fast_products(_short_tokens(batch)):
            for stream, values in taps.items():
                rows = rows_of([of_stream(example, stream) for example in batch])
                with clock.over(stream, "cached"):
                    state = side.run(stream, Taps(values, rows), memory=memory if stream == side.target else None)
                root, leaf = _cut(state)
                cuts.append((stream, root, leaf))
                if stream == ENCODER:
                    memory = Memory(leaf, rows)
            cuts[-1][2].grad = torch.ones_like(cuts[-1][2])
            self._back(cuts, "cached", clock)

    def _back(self, cuts: Sequence[tuple[str, Tensor, Tensor]], name: PassName, clock: _Clock) -> None:
        for stream, root, leaf in reversed(cuts):
            with clock.over(stream, name):
                torch.autograd.backward([root], [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad])

    def _by_layer(self, seconds: Seconds, batch: Sequence[Example], taps: dict[str, Tensor]) -> Seconds:
        """The same of one layer. What goes before the first counts with each layer as one of all."""
        found: Seconds = {}
        for (stream, name), took in seconds.items():
            held = self.model.info.stream(stream).layers
            if name == "backbone":
                found[stream, name] = took / held
            elif name.startswith("head"):
                found[stream, name] = took
            else:
                part = self._part_of_entry(stream, batch, taps[stream], seconds[stream, "side forward"])
                layers = len(taps[stream]) - 1
                found[stream, name] = took * ((1 - part) / layers + part / self._layers[stream])
        return found

    def _part_of_entry(self, stream: str, batch: Sequence[Example], taps: Tensor, forward: float) -> float:
        """Part of the side network's forward pass that is its entry."""
        rows = rows_of([of_stream(example, stream) for example in batch])
        began = time.perf_counter()
        with fast_products(_tokens(batch)):
            self.model.side.enter(stream, taps[0], rows)
        return min((time.perf_counter() - began) / forward, 0.5)


def _cut(state: Tensor) -> tuple[Tensor, Tensor]:
    """Where a graph ends, and where the next begins."""
    return state, state.detach().requires_grad_()


def _tokens(batch: Sequence[Example]) -> int:
    return sum(map(len, batch))


def _short_tokens(batch: Sequence[Example]) -> int:
    """Tokens; 0 for rows so long that `fast_products` would harm the backward pass."""
    return _tokens(batch) if max(map(len, batch)) <= SHORT else 0
