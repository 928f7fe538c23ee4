"""The adapter contract: the trainable side network that reads a frozen backbone's taps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pac_core.contracts.backbone import DECODER, ENCODER, BackboneInfo


class AdapterConfig(BaseModel):
    """What an adapter is built from; saved in ``adapter_config.json``.

    Attributes:
        name: the registered name of the adapter.
        reduction: k; every width of the side network is the backbone's divided by k.
        tap_every: m; every m-th layer is tapped (b_0 and b_L always are).
        init: ``"prune"`` takes weights from the backbone by structural pruning, ``"random"`` does not.
        heads: attention heads of the side network; None chooses few, wide ones.
        dropout: probability on the side network's residual branches and output.
        options: settings of adapters that are not bundled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "parallel"
    reduction: int = Field(default=8, ge=1)
    tap_every: int = Field(default=1, ge=1)
    init: Literal["prune", "random"] = "prune"
    heads: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    options: dict[str, Any] = {}


class ParallelAdapterConfig(AdapterConfig):
    """`AdapterConfig` of the ``parallel`` adapter: one trimmed transformer layer for each tap."""

    name: str = "parallel"


class BottleneckAdapterConfig(AdapterConfig):
    """`AdapterConfig` of the ``bottleneck`` adapter: a down and an up projection for each tap, no attention."""

    name: str = "bottleneck"


@dataclass(frozen=True)
class Rows:
    """How the tokens of a ragged tensor (tokens, ...) form the rows of a batch.

    Row r owns ``lengths[r]`` consecutive tokens. A row may hold several texts (the two sentences of a pair that the
    backbone encoded apart); ``segments`` then says for each token which one it belongs to.

    Attributes:
        lengths: tokens of each row.
        segments: (tokens,) int64 index of the text within its row, None if every row is one text.
    """

    lengths: tuple[int, ...]
    segments: Tensor | None = None

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @property
    def even(self) -> bool:
        """Whether all rows have one length, so that padding is a mere reshape."""
        return min(self.lengths) == self.width

    @cached_property
    def slots(self) -> Tensor:
        """(tokens,) int64 position of each token in the flattened padded (rows * width) tensor."""
        lengths = torch.tensor(self.lengths)
        starts = torch.arange(len(self.lengths)) * self.width - (lengths.cumsum(0) - lengths)
        return torch.arange(int(lengths.sum())) + starts.repeat_interleave(lengths)

    @cached_property
    def row_of(self) -> Tensor:
        """(tokens,) int64 row of each token."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    @cached_property
    def mask(self) -> Tensor | None:
        """(rows, width) bool, True for real tokens; None if there is no padding."""
        if self.even:
            return None
        return torch.arange(self.width)[None] < torch.tensor(self.lengths)[:, None]

    def pad(self, ragged: Tensor) -> Tensor:
        """(tokens, r) to (rows, width, r), zeros as padding, right of the tokens."""
        shape = (len(self.lengths), self.width, ragged.shape[-1])
        if self.even:
            return ragged.reshape(shape)
        flat = ragged.new_zeros(shape[0] * shape[1], shape[2])
        return flat.index_copy(0, self.slots.to(ragged.device), ragged).view(shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """(rows, width, r) to (tokens, r): inverse of `pad`."""
        flat = padded.reshape(-1, padded.shape[-1])
        return flat if self.even else flat.index_select(0, self.slots.to(padded.device))


@dataclass(frozen=True)
class Taps:
    """The taps of one stream for a batch, without padding.

    Attributes:
        values: (taps, tokens, d) b_i for each tapped i in ascending order; no gradient.
        rows: how the tokens form rows.
    """

    values: Tensor
    rows: Rows


class SideNetwork(nn.Module, ABC):
    """A trainable network beside a frozen backbone: reads taps b_0..b_L, gives last hidden states of width d.

    For each stream: ``a_0 = enter(b_0)``, ``a_i = layer(i, b_i, a_{i-1})`` (PAC eq. 1), ``h = exit(a_L, b_L)``. The
    registered factory is ``factory(backbone: Backbone, config: AdapterConfig) -> SideNetwork``. It raises
    `pac_core.errors.BadInput` for a reduction that does not divide the backbone's widths, listing those that do.

    ``h`` must equal b_L at initialisation, so that a generative model starts as the frozen one. States a_i are padded
    (rows, width, r) tensors. `forward` may be overridden to group work over taps; it must equal the chain, which the
    conformance suite checks. The chain form is what a pipeline stage runs: it holds only some layers (see `keep`).

    Args:
        info: the backbone's facts.
        config: the adapter's configuration.
    """

    def __init__(self, info: BackboneInfo, config: AdapterConfig) -> None:
        super().__init__()
        self.info = info
        self.config = config

    @abstractmethod
    def enter(self, stream: str, b_0: Tensor, rows: Rows) -> Tensor:
        """a_0 (rows, width, r) of b_0 (tokens, d)."""

    @abstractmethod
    def layer(
        self, stream: str, index: int, b_i: Tensor, state: Tensor, rows: Rows, *, memory: Memory | None = None
    ) -> Tensor:
        """a_i (rows, width, r) of tap ``index`` (1 for the first tapped layer) b_i (tokens, d) and a_{i-1}.

        ``memory`` is the encoder side state, for streams with cross attention. It is differentiable.
        """

    @abstractmethod
    def exit(self, stream: str, state: Tensor, b_L: Tensor, rows: Rows) -> Tensor:
        """h (tokens, d) of the last state and b_L (tokens, d); a gradient flows into ``state`` only."""

    @abstractmethod
    def keep(self, stream: str, first: int, last: int) -> None:
        """Drop the parameters of all side layers of ``stream`` but first+1..last (tap indices); enter goes with
        first = 0 and exit with last = number of taps - 1. Layers keep their names, so state dicts of slices add up."""

    def run(self, stream: str, taps: Taps, memory: Memory | None = None) -> Tensor:
        """a_L of one stream by the chain ``enter``, ``layer``..., (rows, width, r)."""
        state = self.enter(stream, taps.values[0], taps.rows)
        for index in range(1, taps.values.shape[0]):
            state = self.layer(stream, index, taps.values[index], state, taps.rows, memory=memory)
        return state

    def forward(self, taps: dict[str, Taps]) -> Tensor:
        """h (tokens, d) of the last stream in ``taps`` (``decoder`` if present), given the taps of each stream."""
        memory = None
        if ENCODER in taps and DECODER in taps:
            source = taps[ENCODER]
            memory = Memory(self.run(ENCODER, source), source.rows.mask)
        name = DECODER if DECODER in taps else ENCODER
        last = taps[name]
        return self.exit(name, self.run(name, last, memory), last.values[-1], last.rows)

    def new_past(self) -> Any:
        """State for incremental decoding through `extend`; None for side networks without attention."""
        return None

    @abstractmethod
    def extend(self, stream: str, values: Tensor, past: Any, *, memory: Memory | None = None) -> Tensor:
        """h (rows, new, d) of ``new`` tokens that follow those in ``past``; values (taps, rows, new, d), no padding.

        ``past`` is updated in place. Token for token equal to `forward` on the whole rows.
        """


@dataclass(frozen=True)
class Memory:
    """The side encoder's output, which a side decoder attends to.

    Attributes:
        state: (rows, source width, r).
        mask: (rows, source width) bool, None if nothing is padding.
    """

    state: Tensor
    mask: Tensor | None
