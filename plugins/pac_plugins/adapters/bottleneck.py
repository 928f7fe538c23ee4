"""The ``bottleneck`` adapter: linear down and up projections for each tap, no attention (paper section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from pac_core.contracts.adapter import AdapterConfig, Memory, Rows, SideNetwork
from pac_core.contracts.backbone import BackboneInfo, tap_indices
from pac_plugins.adapters.layers import side_norm
from pac_plugins.adapters.widths import side_widths


class BottleneckLayer(nn.Module):
    """``a_i = a_{i-1} + U act(norm(D b_i + a_{i-1}))`` with D: d to r and U: r to r."""

    def __init__(self, info: BackboneInfo, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.down = nn.Linear(info.hidden_size, width)
        self.norm = side_norm(info, width)
        self.act = ACT2FN[info.activation]
        self.up = nn.Linear(width, width)

    def forward(self, b_i: Tensor, state: Tensor, rows: Rows) -> Tensor:
        """b_i (tokens, d), state (rows, width, r) to (rows, width, r)."""
        step = self.up(self.act(self.norm(rows.pad(self.down(b_i)) + state)))
        return state + F.dropout(step, self.dropout, self.training)


class BottleneckSideNetwork(SideNetwork):
    """Token-wise side network: only the target stream's taps are read, since tokens do not see each other."""

    def __init__(self, info: BackboneInfo, config: AdapterConfig, target: str) -> None:
        super().__init__(info, config, target)
        width = side_widths(info, config).state
        self.state_width = width
        taps = tap_indices(info.stream(target).layers, config.tap_every)
        self.last = len(taps) - 1
        self.first_read: nn.Linear | None = nn.Linear(info.hidden_size, width)
        layers = {str(i): BottleneckLayer(info, width, config.dropout) for i in range(1, len(taps))}
        self.layers = nn.ModuleDict(layers)
        self.last_up: nn.Linear | None = nn.Linear(width, info.hidden_size)
        nn.init.zeros_(self.last_up.weight)
        nn.init.zeros_(self.last_up.bias)
        if info.dtype == torch.float64:
            self.double()

    @property
    def width(self) -> int:
        return self.state_width

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target,)

    def enter(self, stream: str, b_0: Tensor, rows: Rows) -> Tensor:
        return rows.pad(self.first_read(b_0))

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
        return self.layers[str(index)](b_i, state, rows)

    def exit(self, stream: str, state: Tensor, b_L: Tensor) -> Tensor:
        return b_L + self.last_up(state)

    def keep(self, stream: str, first: int, last: int) -> None:
        for index in list(self.layers):
            if not first < int(index) <= last:
                del self.layers[index]
        if first > 0:
            self.first_read = None
        if last < self.last:
            self.last_up = None
