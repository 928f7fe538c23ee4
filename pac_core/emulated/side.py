"""A side network whose weights are real, and whose layers take time and give zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pac_core.contracts.adapter import Memory, Rows, SideNetwork
from pac_core.contracts.backbone import tap_indices
from pac_core.emulated.waits import Waits

ONE = Rows((1,))
"""A row of one token."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What a real layer has shown of itself on one token.

    Attributes:
        channels: of the state that it gives.
        parameters: that it trains.
    """

    channels: int
    parameters: tuple[nn.Parameter, ...]


class EmulatedSide(SideNetwork):
    """Stands in for a side network: gradients of its parameters are zeros, ready when the real ones would be.

    Args:
        real: the side network, in which each layer is run once, on one token, to see what it gives and trains.
        waits: for its layers.
    """

    def __init__(self, real: SideNetwork, waits: Waits) -> None:
        super().__init__(real.info, real.config, real.target)
        self.real = real
        self.waits = waits
        self.half_taps = real.half_taps
        self._seen: dict[tuple[str, int], Piece] = {}

    @property
    def reads(self) -> tuple[str, ...]:
        return self.real.reads

    @property
    def width(self) -> int:
        return self.real.width

    def enter(self, stream: str, b_0: Tensor, rows: Rows) -> Tensor:
        piece = self._piece(stream, 0, lambda: self.real.enter(stream, self._token(), ONE))
        return _zeros(rows, piece, _nothing)

    def layer(
        self,
        stream: str,
        index: int,
        b_i: Tensor,
        state: Tensor,
        rows: Rows,
        *,
        memory: Memory | None = None,
        past: Any = None,
    ) -> Tensor:
        def run() -> Tensor:
            one = state.new_zeros(1, 1, state.shape[-1])
            attended = None if memory is None else Memory(state.new_zeros(1, 1, memory.state.shape[-1]), ONE)
            return self.real.layer(stream, index, self._token(), one, ONE, memory=attended)

        piece = self._piece(stream, index, run)
        layer = tap_indices(self.info.stream(stream).layers, self.config.tap_every)[index] - 1
        self.waits.side(stream, layer, rows.lengths)
        states = [state] if memory is None else [state, memory.state]
        return _zeros(rows, piece, partial(self.waits.back, stream, layer, rows.lengths), *states)

    def exit(self, stream: str, state: Tensor, b_L: Tensor) -> Tensor:
        return self.real.exit(stream, state, b_L)

    def keep(self, stream: str, first: int, last: int) -> None:
        self.real.keep(stream, first, last)
        self._seen.clear()

    def calibrate(self, spread: Tensor) -> None:
        self.real.calibrate(spread)

    def _token(self) -> Tensor:
        return torch.zeros(1, self.info.hidden_size, dtype=next(self.real.parameters()).dtype)

    def _piece(self, stream: str, index: int, run: Callable[[], Tensor]) -> Piece:
        if (stream, index) not in self._seen:
            with torch.enable_grad():
                found = run()
            self._seen[stream, index] = Piece(found.shape[-1], tuple(dict.fromkeys(_leaves(found.grad_fn))))
        return self._seen[stream, index]


def _nothing() -> None: ...


def _leaves(node: Any) -> Iterator[nn.Parameter]:
    """The parameters at the ends of a graph."""
    waiting, known = [node], set()
    while waiting:
        current = waiting.pop()
        if current is None or current in known:
            continue
        known.add(current)
        if hasattr(current, "variable"):
            yield current.variable
        waiting += [following for following, _ in current.next_functions]


def _zeros(rows: Rows, piece: Piece, back: Callable[[], None], *states: Tensor) -> Tensor:
    """(rows, width, channels) zeros that depend on ``states`` and on the parameters of ``piece``."""
    shape = (len(rows.lengths), rows.width, piece.channels)
    found: Tensor = _Zeros.apply(shape, back, *states, *piece.parameters)  # type: ignore[no-untyped-call]
    return found


class _Zeros(torch.autograd.Function):
    """Zeros whose gradients are zeros, after a wait."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], back: Callable[[], None], *given: Tensor) -> Tensor:
        ctx.back, ctx.shapes = back, [tensor.shape for tensor in given]
        return given[0].new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.back()
        return None, None, *(gradients[0].new_zeros(()).expand(shape) for shape in ctx.shapes)
