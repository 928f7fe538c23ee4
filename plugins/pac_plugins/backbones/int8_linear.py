"""Layers of a frozen model whose matrices are held as int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from pac_core.int8 import Int8Matrix, dequantise, pieces, quantise
from pac_plugins.backbones.family import Family


class Int8Linear(nn.Module):
    """What `nn.Linear` does, for one matrix after the other in full precision, and no more of it than `PIECE`.

    Multiplying batches is long compared with this. `weight` (outputs, inputs) is int8 and means nothing without
    `scales`; transformers' T5 reads its dtype.
    """

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix.numbers, requires_grad=False)
        self.scales = nn.Parameter(matrix.scales, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        ranges = pieces(*self.weight.shape)
        if len(ranges) == 1:
            return self._outputs(values, *ranges[0])
        found = values.new_empty(*values.shape[:-1], len(self.weight))
        for first, last in ranges:
            found[..., first:last] = self._outputs(values, first, last)
        return found

    def _outputs(self, values: Tensor, first: int, last: int) -> Tensor:
        weight = dequantise(self.weight[first:last], self.scales[first:last], values.dtype)
        return linear(values, weight, None if self.bias is None else self.bias[first:last])


def matrices(base: nn.Module, family: Family) -> dict[str, bool]:
    """Names of the parameters of the bare model that are held as int8, all in its layers, and whether they are stored
    as (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    found = {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in base.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return {name: transposed for name, transposed in found.items() if family.layer_of(name) is not None}


def quantised(tensor: Tensor, transposed: bool) -> Int8Matrix:
    """A stored matrix as int8."""
    return quantise(tensor.t() if transposed else tensor)


def put_in(base: nn.Module, held: Mapping[str, Int8Matrix]) -> None:
    """Replace the modules of matrices, by the names of their weights; biases are taken over."""
    for name, matrix in held.items():
        path = name.removesuffix(".weight")
        parent, _, attribute = path.rpartition(".")
        module: Any = base.get_submodule(path)
        setattr(base.get_submodule(parent), attribute, Int8Linear(matrix, module.bias))
