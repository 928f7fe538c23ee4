"""Messages and figures for the transport suite."""

from __future__ import annotations

import resource
import sys

import torch

from pac_core.contracts.message import Message, Tag

MIB = 1 << 20

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def tag(n: int = 0, direction: str = "forward", stage: int = 1) -> Tag:
    """The tag of micro-batch ``n``."""
    return Tag(direction, stage, n)


def numbered(n: int, size: int = 3, micro_batch: int = 0) -> Message:
    """A message that can be told from others by its header and its numbers."""
    return Message(tag(micro_batch), {"n": n}, {"x": torch.full((size,), float(n))})


def values(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Numbers that differ from one another, the same ones wherever they are made."""
    count = int(torch.tensor(shape, dtype=torch.int64).prod()) if shape else 1
    return (torch.arange(count) * 7 % 251 - 100).to(dtype).view(shape)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have one type, one shape and the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def peak_bytes() -> int:
    """The most memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
