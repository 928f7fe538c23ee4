"""The widths of a side network: the backbone's divided by k."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneInfo
from pac_core.errors import BadInput

HEADS = 4
"""Fewer lose accuracy, more cost time (docs/quality.md)."""


@dataclass(frozen=True)
class Widths:
    """Widths of a side network: states r = d / k, MLP f / k, and the number of attention heads."""

    state: int
    mlp: int
    heads: int


def side_widths(info: BackboneInfo, config: AdapterConfig) -> Widths:
    """Widths for a backbone and a reduction.

    Raises:
        BadInput: k does not divide both widths, or the heads do not divide the state.
    """
    k = config.reduction
    common = gcd(info.hidden_size, info.intermediate_size)
    if common % k:
        fitting = [n for n in range(1, min(common, 64) + 1) if common % n == 0]
        raise BadInput(
            f"reduction {k} does not divide the backbone's widths {info.hidden_size} and {info.intermediate_size}; "
            f"those that do: {', '.join(map(str, fitting))}"
        )
    state = info.hidden_size // k
    heads = config.heads or max(n for n in range(1, HEADS + 1) if state % n == 0)
    if state % heads:
        fitting = [n for n in range(1, state + 1) if state % n == 0]
        raise BadInput(
            f"{heads} heads do not divide the side width {state}; those that do: {', '.join(map(str, fitting))}"
        )
    return Widths(state, info.intermediate_size // k, heads)
