"""The adapter contract: the trainable side network that reads a frozen backbone's taps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pac_core.contracts.backbone import ENCODER, BackboneInfo


class AdapterConfig(BaseModel):
    """What an adapter is built from; saved in ``adapter_config.json``.

    Attributes:
        name: the registered name of the adapter.
        reduction: k; every width of the side network is the backbone's divided by k.
        tap_every: m; every m-th layer is tapped (b_0 and b_L always are).
        init: ``"prune"`` takes weights from the backbone by structural pruning, ``"random"`` does not.
        heads: attention heads of the side network; None chooses few, wide ones.
        dropout: probability on the side network's residual branches, and on what a trainable head reads.
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
        match: (taps, tokens) how well each token is matched by one of the row's other text in each tap, with mean 0 and
            deviation 1 over the training data; None if that is not known.
    """

    lengths: tuple[int, ...]
    segments: Tensor | None = None
    match: Tensor | None = None

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
        """(..., tokens, r) to (..., rows, width, r), zeros as padding, right of the tokens."""
        rows, before, channels = len(self.lengths), ragged.shape[:-2], ragged.shape[-1]
        if not self.even:
            flat = ragged.new_zeros(*before, rows * self.width, channels)
            ragged = flat.index_copy(-2, self.slots.to(ragged.device), ragged)
        return ragged.reshape(*before, rows, self.width, channels)

    def unpad(self, padded: Tensor) -> Tensor:
        """(rows, width, r) to (tokens, r): inverse of `pad`."""
        flat = padded.reshape(-1, padded.shape[-1])
        return flat if self.even else flat.index_select(0, self.slots.to(padded.device))


@dataclass(frozen=True)
class Taps:
    """The taps of one stream for a batch, without padding.

    Attributes:
        values: (taps, tokens, d) b_i for each tapped i in ascending order; no gradient. In the dtype that the side
            network computes in or, for one that says ``half_taps``, in bfloat16 if the cache holds them so.
        rows: how the tokens form rows.
    """

    values: Tensor
    rows: Rows

    @property
    def last(self) -> Tensor:
        """b_L (tokens, d) of the last tap, in float32 at least."""
        return widened(self.values[-1])


def widened(values: Tensor) -> Tensor:
    """``values`` in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class Memory:
    """The side encoder's output, which a side decoder attends to.

    Attributes:
        state: (rows, source width, r).
        rows: how the encoder's tokens form its rows; ``rows.mask`` says which of ``state`` are real.
    """

    state: Tensor
    rows: Rows


class SideNetwork(nn.Module, ABC):
    """A trainable network beside a frozen backbone: reads taps b_0..b_L, gives last hidden states of width d.

    For each stream: ``a_0 = enter(b_0)``, ``a_i = layer(i, b_i, a_{i-1})`` (PAC eq. 1), ``h = exit(a_L, b_L)``. The
    registered factory is ``factory(backbone: Backbone, config: AdapterConfig, target: str) -> SideNetwork`` and builds
    what gives h of stream ``target``. It raises `pac_core.errors.BadInput` for a reduction that does not divide the
    backbone's widths, listing those that do.

    h equals b_L at initialisation, so that a generative model starts as the frozen one. States a_i are padded
    (rows, width, channels) tensors in the dtype of the parameters, float32 unless the backbone is float64; the last one
    has r channels, those before it as many as the adapter likes. A pipeline stage
    holds only some layers (see `keep`) and runs them one by one; `forward` is the whole chain.

    Args:
        info: the backbone's facts.
        config: the adapter's configuration.
        target: the stream whose last hidden states are wanted.

    Attributes:
        half_taps: whether `enter` and `layer` also take bfloat16 taps, as the cache may hold them; where the hardware
            multiplies bfloat16 matrices, reading them so is several times as fast.
    """

    half_taps = False

    def __init__(self, info: BackboneInfo, config: AdapterConfig, target: str) -> None:
        super().__init__()
        self.info = info
        self.config = config
        self.target = target

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Streams whose taps `forward` needs, the target last."""

    @abstractmethod
    def enter(self, stream: str, b_0: Tensor, rows: Rows) -> Tensor:
        """a_0 (rows, width, channels) of b_0 (tokens, d)."""

    @abstractmethod
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
        """a_i (rows, width, channels) of tap ``index`` (1 is the first after b_0) b_i (tokens, d) and a_{i-1}.

        ``memory`` is the side encoder's output, for streams with cross attention; gradients flow into it. With
        ``past`` from `new_past` the tokens follow those seen before, which it then also holds.
        """

    @abstractmethod
    def exit(self, stream: str, state: Tensor, b_L: Tensor) -> Tensor:
        """h (..., d) of the last state (..., r) and b_L (..., d), token by token or of means of tokens alike: it is
        affine in both, so that a task which pools a row can pool at width r first."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels r of the last state."""

    @abstractmethod
    def keep(self, stream: str, first: int, last: int) -> None:
        """Drop every parameter of ``stream`` but those of side layers first+1..last (tap indices); `enter` goes with
        first = 0, `exit` with last = number of taps - 1; first = 1 and last = 0 leave nothing. Parameters keep their
        names, so slices' state dicts add up."""

    def calibrate(self, spread: Tensor) -> None:
        """Told once before training how much each channel of what h is made for varies, (d,): the deviation of b_L
        over tokens, or over rows for tasks that read a row's mean."""

    def new_past(self) -> Any:
        """State for incremental decoding; None for side networks in which tokens do not see each other."""
        return None

    def run(self, stream: str, taps: Taps, *, memory: Memory | None = None, past: Any = None) -> Tensor:
        """a_L (rows, width, r) of one stream: ``enter``, then each ``layer``."""
        state = self.enter(stream, taps.values[0], taps.rows)
        for index in range(1, taps.values.shape[0]):
            state = self.layer(stream, index, taps.values[index], state, taps.rows, memory=memory, past=past)
        return state

    def remember(self, taps: Taps) -> Memory:
        """The side encoder's output for the side decoder."""
        return Memory(self.run(ENCODER, taps), taps.rows)

    def final(self, taps: dict[str, Taps], *, memory: Memory | None = None, past: Any = None) -> Tensor:
        """Last state (tokens, r) of the target stream; arguments as in `forward`."""
        if memory is None and len(self.reads) == 2:
            memory = self.remember(taps[ENCODER])
        last = taps[self.target]
        return last.rows.unpad(self.run(self.target, last, memory=memory, past=past))

    def forward(self, taps: dict[str, Taps], *, memory: Memory | None = None, past: Any = None) -> Tensor:
        """h (tokens, d) of the target stream; ``taps`` holds those of every stream in `reads`.

        While decoding step by step, ``memory`` stands in for the encoder's taps and ``past`` holds what came before.
        """
        state = self.final(taps, memory=memory, past=past)
        return self.exit(self.target, state, taps[self.target].last)

    def trainable(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())
