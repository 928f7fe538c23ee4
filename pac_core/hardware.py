"""What the hardware at hand does well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SHORT = 128
"""Tokens of a row up to which attention at side widths is best computed on CPUs as plain matrix products; beyond,
PyTorch's own is faster and takes less memory."""

LARGE = 1024
"""Tokens of a batch from which float32 matrix products are large enough to choose a library for; below, the choice
costs more than it brings (measured at widths 48 to 3072)."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware, several times as fast as float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = cpu_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def fast_products(tokens: int) -> Iterator[None]:
    """Within it, float32 matrix products on a CPU use the library that is faster for a batch of ``tokens``.

    Not for training on rows beyond `SHORT`: the backward pass of PyTorch's own attention would take several times as
    long. Its forward pass is taken care of.

    PyTorch takes MKL, which on AMD processors leaves half of the vector units unused; oneDNN does not. PyTorch offers
    oneDNN only with leave to round to bfloat16, which oneDNN takes only where the processor has units for it (AMX), so
    there nothing is changed: results are float32 to the last bits either way.
    """
    able = cpu_capabilities()
    better = "AMD" in str(able.get("cpu_name")) and able.get("avx512_f") and not able.get("amx_tile")
    if tokens < LARGE or not better:
        yield
        return
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set up when torch is imported
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        with _AttentionAsBefore(before):
            yield
    finally:
        products.fp32_precision = before


class _AttentionAsBefore(TorchFunctionMode):
    """Leaves the many tiny products inside PyTorch's own attention to the library it was written for."""

    def __init__(self, before: str) -> None:
        super().__init__()
        self.before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        inside, products.fp32_precision = products.fp32_precision, self.before
        try:
            return func(*args, **(kwargs or {}))
        finally:
            products.fp32_precision = inside


def cpu_capabilities() -> Mapping[str, Any]:
    """What the CPU can do, by name; nothing with a PyTorch that does not tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
