"""Matrices as int8: how far they are off, and that they do not depend on how they are stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core import int8
from pac_core.int8 import BLOCK, block_of, dequantise, int8_bytes, int8_size, quantise

SHAPES = st.tuples(st.integers(1, 9), st.sampled_from([1, 3, 8, 32, 48, 64, 100, 160]))


def drawn(shape: tuple[int, int], seed: int, spread: float) -> torch.Tensor:
    """Random numbers whose rows have very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (spread * torch.rand(shape[0], 1, generator=generator))
    return torch.randn(shape, generator=generator) * sizes


@given(SHAPES, st.integers(0, 99), st.floats(-6, 6))
@settings(max_examples=60, deadline=None)
def test_every_number_is_off_by_half_a_step_at_most(shape: tuple[int, int], seed: int, spread: float) -> None:
    matrix = drawn(shape, seed, spread)
    found = quantise(matrix)
    steps = found.scales.float().repeat_interleave(block_of(shape[1]), 1)
    off = (dequantise(found.numbers, found.scales, torch.float32) - matrix).abs()
    assert bool((off <= 0.5001 * steps).all())
    assert int8_bytes(*shape) == sum(t.numel() * t.itemsize for t in (found.numbers, found.scales))


@given(SHAPES, st.integers(0, 99), st.sampled_from([1, 100, 1 << 30]))
@settings(max_examples=40, deadline=None)
def test_a_matrix_is_the_same_however_it_is_stored_and_cut(shape: tuple[int, int], seed: int, piece: int) -> None:
    matrix = drawn(shape, seed, 2.0)
    expected = quantise(matrix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "PIECE", piece)
        found = quantise(matrix.t().contiguous().t())
    assert torch.equal(found.numbers, expected.numbers)
    assert torch.equal(found.scales, expected.scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_are_rounded_once(dtype: torch.dtype) -> None:
    found = quantise(drawn((8, 64), 0, 1.0))
    exact = found.numbers.double() * found.scales.double().repeat_interleave(BLOCK, 1)
    assert torch.equal(dequantise(found.numbers, found.scales, dtype), exact.to(dtype))


def test_blocks_of_zeros_stay_zero() -> None:
    found = quantise(torch.zeros(2, 64))
    assert not dequantise(found.numbers, found.scales, torch.float32).any()


def test_a_matrix_takes_little_more_than_a_byte_a_number() -> None:
    assert int8_size(768 * 3072) == int8_bytes(768, 3072) == 768 * 3072 * 34 // 32
