"""The ``parallel`` adapter: PAC's side network, one trimmed transformer layer for each tap (paper section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pac_core.contracts.adapter import AdapterConfig, Memory, Rows, SideNetwork
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneInfo, Stream, tap_indices
from pac_plugins.adapters.layers import CrossAttention, Mlp, SelfAttention, side_norm
from pac_plugins.adapters.pruning import prune_into
from pac_plugins.adapters.widths import Widths, side_widths


class SideLayer(nn.Module):
    """f_i of PAC eq. 1: mixes tap and state through a gate, then attention, cross attention, MLP, each pre-norm.

    ``x = g * W b_i + (1 - g) * a`` with g = sigmoid of a learned vector of width r (Ladder Side-Tuning's gate, one
    for each channel), then a pre-norm transformer layer on x.
    """

    def __init__(self, info: BackboneInfo, widths: Widths, stream: Stream, index: int, dropout: float) -> None:
        super().__init__()
        r = widths.state
        self.dropout = dropout
        self.read = nn.Linear(info.hidden_size, r)
        self.gate = nn.Parameter(torch.zeros(r))
        self.attention_norm = side_norm(info, r)
        self.attention = SelfAttention(r, widths.heads, stream.causal, f"{stream.name}.{index}")
        self.cross: CrossAttention | None = None
        if stream.cross:
            self.cross_norm = side_norm(info, r)
            self.cross = CrossAttention(r, widths.heads, f"{stream.name}.{index}.cross")
        self.mlp_norm = side_norm(info, r)
        self.mlp = Mlp(info, r, widths.mlp)

    def forward(self, b_i: Tensor, state: Tensor, rows: Rows, memory: Memory | None, past: Any) -> Tensor:
        """b_i (tokens, d), state (rows, width, r) to (rows, width, r)."""
        tap = rows.pad(self.read(b_i))
        x = torch.lerp(state, tap, self.gate.sigmoid())
        x = x + self._drop(self.attention(self.attention_norm(x), rows, past))
        if self.cross is not None:
            assert memory is not None
            x = x + self._drop(self.cross(self.cross_norm(x), memory, past))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.training and self.dropout else x


class SideStream(nn.Module):
    """The side layers beside one stream; ``layers`` is keyed by tap index so that slices keep their names."""

    def __init__(self, info: BackboneInfo, config: AdapterConfig, widths: Widths, stream: Stream, exits: bool) -> None:
        super().__init__()
        self.taps = tap_indices(stream.layers, config.tap_every)
        self.enter: nn.Linear | None = nn.Linear(info.hidden_size, widths.state)
        indices = range(1, len(self.taps))
        self.layers = nn.ModuleDict({str(i): SideLayer(info, widths, stream, i, config.dropout) for i in indices})
        self.norm: nn.Module | None = side_norm(info, widths.state)
        self.exit: nn.Linear | None = nn.Linear(widths.state, info.hidden_size) if exits else None


class ParallelSideNetwork(SideNetwork):
    """The trimmed transformer beside the backbone; see `SideLayer` for a layer and `SideNetwork` for the contract."""

    def __init__(self, info: BackboneInfo, config: AdapterConfig, target: str) -> None:
        super().__init__(info, config, target)
        self.widths = side_widths(info, config)
        cross = info.stream(target).cross
        self._reads = (ENCODER, DECODER) if cross else (target,)
        self.streams = nn.ModuleDict(
            {name: SideStream(info, config, self.widths, info.stream(name), name == target) for name in self._reads}
        )
        exit_ = self.streams[target].exit
        nn.init.zeros_(exit_.weight)
        nn.init.zeros_(exit_.bias)

    @property
    def reads(self) -> tuple[str, ...]:
        return self._reads

    def enter(self, stream: str, b_0: Tensor, rows: Rows) -> Tensor:
        return rows.pad(self.streams[stream].enter(b_0))

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
        state = side.layers[str(index)](b_i, state, rows, memory, past)
        return side.norm(state) if index == len(side.taps) - 1 else state

    def exit(self, stream: str, state: Tensor, b_L: Tensor, rows: Rows) -> Tensor:
        return b_L + self.streams[stream].exit(rows.unpad(state))

    def keep(self, stream: str, first: int, last: int) -> None:
        side = self.streams[stream]
        for index in list(side.layers):
            if not first < int(index) <= last:
                del side.layers[index]
        if first > 0:
            side.enter = None
        if last < len(side.taps) - 1:
            side.norm = side.exit = None

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
