"""The ``parallel`` adapter: PAC's side network, one trimmed transformer layer for each tap (paper section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pac_core.contracts.adapter import AdapterConfig, Memory, Rows, SideNetwork, Taps
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneInfo, Stream, tap_indices
from pac_plugins.adapters.layers import CrossAttention, Mlp, Residual, SelfAttention, side_norm
from pac_plugins.adapters.pruning import prune_into
from pac_plugins.adapters.reading import TapRead, read_taps
from pac_plugins.adapters.widths import Widths, side_widths

MAX_SEGMENTS = 2
"""Texts that a row may hold."""


class SideLayer(nn.Module):
    """f_i of PAC eq. 1: mixes tap and state through a gate, then attends, with the norms behind each branch.

    ``x = g norm(W b_i) + (1 - g) a`` with the scalar gate g = sigmoid(alpha), alpha starting at 0 (Ladder Side-Tuning,
    section 3); then ``x = norm(x + attention(x))``, cross attention and MLP likewise. Taps are normalised at width r,
    after the projection: at width d that would cost more than the projection itself.
    """

    def __init__(
        self, info: BackboneInfo, widths: Widths, stream: Stream, index: int, last: int, dropout: float
    ) -> None:
        super().__init__()
        r = widths.state
        self.add = Residual(dropout)
        self.read = TapRead(info, r, last + 1)
        self.gate = nn.Parameter(torch.zeros(1))
        self.share = nn.Parameter(torch.full((1,), 1 / (last + 1)))
        self.attention = SelfAttention(r, widths.heads, stream.causal, f"{stream.name}.{index}")
        self.attention_norm = side_norm(info, r)
        self.cross: CrossAttention | None = None
        if stream.cross:
            self.cross = CrossAttention(r, widths.heads, f"{stream.name}.{index}.cross")
            self.cross_norm = side_norm(info, r)
        self.mlp = Mlp(info, r, widths.mlp)
        self.mlp_norm = side_norm(info, r)

    def forward(self, read: Tensor, a: Tensor, rows: Rows, memory: Memory | None, past: Any) -> Tensor:
        """a_i of the tap's ``read`` and a_{i-1}, all (rows, width, r)."""
        x = torch.lerp(a, read, self.gate.sigmoid())
        x = self.attention_norm(self.add(x, self.attention(x, rows, past)))
        if self.cross is not None:
            assert memory is not None
            x = self.cross_norm(self.add(x, self.cross(x, memory, past)))
        a_i: Tensor = self.mlp_norm(self.add(x, self.mlp(x)))
        return a_i


class SideExit(nn.Module):
    """Up-projection of the last state, in units of how much the backbone's last hidden state varies.

    Zero at first, so that the model starts as the frozen one.
    """

    scale: Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        nn.init.zeros_(self.up.weight)
        self.register_buffer("scale", torch.ones(hidden))

    def forward(self, state: Tensor) -> Tensor:
        return self.up(state) * self.scale


class SideStream(nn.Module):
    """The side layers beside one stream; ``layers`` is keyed by tap index so that slices keep their names."""

    def __init__(self, info: BackboneInfo, config: AdapterConfig, widths: Widths, stream: Stream, exits: bool) -> None:
        super().__init__()
        self.taps = tap_indices(stream.layers, config.tap_every)
        self.enter: TapRead | None = TapRead(info, widths.state, len(self.taps))
        self.segments: nn.Embedding | None = nn.Embedding(MAX_SEGMENTS, widths.state)
        nn.init.normal_(self.segments.weight, std=0.02)
        last = len(self.taps) - 1
        self.share: nn.Parameter | None = nn.Parameter(torch.full((1,), 1 / (last + 1)))
        self.layers = nn.ModuleDict(
            {str(i): SideLayer(info, widths, stream, i, last, config.dropout) for i in range(1, last + 1)}
        )
        self.exit: SideExit | None = SideExit(widths.state, info.hidden_size) if exits else None

    def begin(self, read: Tensor, rows: Rows) -> Tensor:
        """a_0 of the first tap's ``read``, both (rows, width, r): which of its row's texts a token is of is added."""
        if rows.segments is None:
            return read
        assert self.segments is not None
        return read + rows.pad(self.segments(rows.segments.to(read.device)))


class ParallelSideNetwork(SideNetwork):
    """The trimmed transformer beside the backbone; see `SideLayer` for a layer and `SideNetwork` for the contract.

    What leaves it is a learnt mix of all states, sum of share_i a_i, since earlier ones often tell more than the last.
    Between pipeline stages a state is therefore the pair (a_i, sum of share_j a_j over j <= i), 2 r wide.
    """

    half_taps = True

    def __init__(self, info: BackboneInfo, config: AdapterConfig, target: str) -> None:
        super().__init__(info, config, target)
        self.widths = side_widths(info, config)
        cross = info.stream(target).cross
        self._reads = (ENCODER, DECODER) if cross else (target,)
        self.streams = nn.ModuleDict(
            {name: SideStream(info, config, self.widths, info.stream(name), name == target) for name in self._reads}
        )

    @property
    def width(self) -> int:
        return self.widths.state

    @property
    def reads(self) -> tuple[str, ...]:
        return self._reads

    def enter(self, stream: str, b_0: Tensor, rows: Rows) -> Tensor:
        side = self.streams[stream]
        a = side.begin(read_taps([side.enter], b_0[None], rows)[0], rows)
        return torch.cat([a, a * side.share], -1)

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
        side = self.streams[stream]
        layer = side.layers[str(index)]
        a, mix = state.chunk(2, -1)
        a = layer(read_taps([layer.read], b_i[None], rows)[0], a, rows, memory, past)
        mix = torch.addcmul(mix, a, layer.share)
        return mix if index == len(side.taps) - 1 else torch.cat([a, mix], -1)

    def run(self, stream: str, taps: Taps, *, memory: Memory | None = None, past: Any = None) -> Tensor:
        """As layer by layer, with all taps read at once."""
        side, rows = self.streams[stream], taps.rows
        layers = [side.layers[str(i)] for i in range(1, len(side.taps))]
        first, *others = read_taps([side.enter, *(layer.read for layer in layers)], taps.values, rows)
        a = side.begin(first, rows)
        mix = a * side.share
        for layer, read in zip(layers, others):
            a = layer(read, a, rows, memory, past)
            mix = torch.addcmul(mix, a, layer.share)
        return mix

    def exit(self, stream: str, state: Tensor, b_L: Tensor) -> Tensor:
        return b_L + self.streams[stream].exit(state)

    def keep(self, stream: str, first: int, last: int) -> None:
        side = self.streams[stream]
        for index in list(side.layers):
            if not first < int(index) <= last:
                del side.layers[index]
        if first > 0:
            side.enter = side.segments = side.share = None
        if last < len(side.taps) - 1:
            side.exit = None

    def calibrate(self, spread: Tensor) -> None:
        side = self.streams[self.target]
        if side.exit is not None:
            side.exit.scale.copy_(spread)

    def new_past(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {}


def build(backbone: Backbone, config: AdapterConfig, target: str) -> ParallelSideNetwork:
    """The factory of ``parallel``: the network, pruned from the backbone if the configuration says so.

    Raises:
        BadInput: the reduction does not divide the backbone's widths.
    """
    network = ParallelSideNetwork(backbone.info, config, target)
    if config.init == "prune":
        prune_into(network, backbone)
    return network.double() if backbone.info.dtype == torch.float64 else network
