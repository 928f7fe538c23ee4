"""Codecs keep what they promise, and no damaged entry is accepted."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pac_core.codecs import CODECS, PAYLOAD_AT, EntryFormat, codec_for, intact, read_header, shuffle_bytes
from pac_core.codecs import unshuffle_bytes as unshuffle
from pac_core.errors import BadInput, RunFailed

KEY = bytes(range(16))
SHAPES = st.tuples(st.integers(1, 3), st.integers(0, 9), st.integers(1, 150))


def activations(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def there_and_back(name: str, entry: Tensor, out_dtype: torch.dtype = torch.float32, shuffle: bool = False) -> Tensor:
    form = EntryFormat(codec_for(name), b"namespac", entry.shape[2])
    packed = form.pack(KEY, entry, shuffle=shuffle)
    room = torch.full((entry.shape[0], entry.shape[1] + 5, entry.shape[2]), 7.0, dtype=out_dtype)
    out = room[:, 2 : 2 + entry.shape[1]]
    assert form.unpack(KEY, packed, entry.shape[0], entry.shape[1], out)
    assert (room[:, :2] == 7).all()
    assert (room[:, 2 + entry.shape[1] :] == 7).all()
    return out


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.booleans())
def test_float32_and_float64_are_exact(shape: tuple[int, int, int], shuffle: bool) -> None:
    entry = activations(shape)
    assert torch.equal(there_and_back("float32", entry, shuffle=shuffle), entry)
    double = activations(shape, dtype=torch.float64)
    assert torch.equal(there_and_back("float64", double, torch.float64, shuffle), double)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.booleans())
def test_bfloat16_rounds_to_nearest_even(shape: tuple[int, int, int], shuffle: bool) -> None:
    entry = activations(shape)
    assert torch.equal(there_and_back("bfloat16", entry, shuffle=shuffle), entry.bfloat16().float())
    half = entry.bfloat16()
    assert torch.equal(there_and_back("bfloat16", half, shuffle=shuffle), half.float())


def test_bfloat16_ties_go_to_even() -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]).view(1, 1, 3)
    assert there_and_back("bfloat16", ties).flatten().tolist() == [1.0, 1 + 2**-6, -1.0]


def test_special_values_survive_the_casts() -> None:
    entry = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 1e-40]).view(1, 1, 5)
    for name in ("float32", "float64", "bfloat16"):
        found = there_and_back(name, entry, shuffle=True).flatten()
        assert found[:2].tolist() == [float("inf"), -float("inf")]
        assert found[2].isnan()
        assert torch.signbit(found[3])


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.integers(0, 99), st.floats(1e-30, 1e30), st.sampled_from([torch.float32, torch.float64]))
def test_int8_keeps_its_bound(shape: tuple[int, int, int], seed: int, scale: float, dtype: torch.dtype) -> None:
    entry = (activations(shape, seed) * scale).float()
    entry[:, ::2, ::7] *= 1000  # outliers
    found = there_and_back("int8", entry, dtype)
    padded = torch.nn.functional.pad(entry.double(), (0, -shape[2] % 64)).unflatten(-1, (-1, 64))
    most = padded.abs().amax(-1, keepdim=True).expand_as(padded).flatten(-2)[..., : shape[2]]
    assert ((entry.double() - found.double()).abs() <= most / 254 * (1 + 1e-5) + 1e-37).all()


def test_int8_of_zeros_and_tiny_numbers() -> None:
    assert torch.equal(there_and_back("int8", torch.zeros(2, 3, 70)), torch.zeros(2, 3, 70))
    assert there_and_back("int8", torch.full((1, 1, 64), 1e-44)).abs().max() <= 2e-44


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_int8_refuses_what_it_cannot_hold(value: float) -> None:
    entry = activations((2, 3, 70))
    entry[1, 2, 69] = value
    with pytest.raises(RunFailed, match="inf or nan"):
        there_and_back("int8", entry)


def test_int8_takes_a_quarter_of_float32() -> None:
    size = codec_for("int8").payload_bytes(13, 128, 768)
    assert size == 13 * 128 * (768 + 12 * 4)
    assert size / codec_for("float32").payload_bytes(13, 128, 768) < 0.27


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_shuffling_sorts_bytes_by_significance(count: int, dtype: torch.dtype) -> None:
    values = activations((count,), dtype=dtype)
    planes = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    shuffle_bytes(values, planes)
    expected = np.frombuffer(values.view(torch.uint8).numpy().tobytes(), np.uint8).reshape(count, dtype.itemsize).T
    assert np.array_equal(planes.numpy().reshape(dtype.itemsize, count), expected)
    assert torch.equal(unshuffle(planes, dtype).view(torch.uint8), values.view(torch.uint8))


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_non_contiguous_entry_is_taken(name: str) -> None:
    entry = activations((70, 4, 3)).permute(2, 1, 0)
    exact = there_and_back(name, entry.contiguous())
    for shuffle in (False, True):
        assert torch.equal(there_and_back(name, entry, shuffle=shuffle), exact)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_any_flipped_bit_and_any_cut_is_noticed(name: str) -> None:
    form = EntryFormat(codec_for(name), b"namespac", 5)
    packed = bytes(form.pack(KEY, activations((2, 3, 5)), shuffle=False))
    out = torch.zeros(2, 3, 5)
    for where in range(len(packed)):
        flipped = bytearray(packed)
        flipped[where] ^= 1 << (where % 8)
        assert not form.unpack(KEY, flipped, 2, 3, out)
    for length in range(len(packed)):
        assert not form.unpack(KEY, packed[:length], 2, 3, out)
    assert not form.unpack(KEY, packed + b"\0", 2, 3, out)
    assert (out == 0).all()
    assert form.unpack(KEY, packed, 2, 3, out)


def test_an_entry_under_another_key_shape_namespace_or_codec_is_refused() -> None:
    form = EntryFormat(codec_for("float32"), b"namespac", 8)
    packed = form.pack(KEY, activations((2, 3, 8)), shuffle=False)
    assert not form.unpack(KEY[::-1], packed, 2, 3, torch.empty(2, 3, 8))
    assert not form.unpack(KEY, packed, 3, 2, torch.empty(3, 2, 8))
    assert not EntryFormat(form.codec, form.namespace, 4).unpack(KEY, packed, 2, 6, torch.empty(2, 6, 4))
    assert not EntryFormat(form.codec, b"other---", 8).unpack(KEY, packed, 2, 3, torch.empty(2, 3, 8))
    # four bytes a value as well, so that only the header tells it from float32
    as_double = EntryFormat(codec_for("float64"), b"namespac", 8)
    assert not as_double.unpack(KEY, packed, 2, 3, torch.empty(2, 3, 8))


def test_a_header_that_claims_what_it_likes_allocates_nothing() -> None:
    form = EntryFormat(codec_for("float32"), b"namespac", 8)
    packed = bytearray(form.pack(KEY, activations((2, 3, 8)), shuffle=False))
    struct.pack_into("<III", packed, 16, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    header = read_header(packed)
    assert header is not None
    assert header.shape == (2**32 - 1,) * 3
    assert not intact(KEY, packed)
    assert not form.unpack(KEY, packed, 2, 3, torch.empty(2, 3, 8))


def test_the_layout_of_an_entry_is_fixed() -> None:
    """Caches outlive versions of this code: a change here needs a new version number in the header."""
    form = EntryFormat(codec_for("bfloat16"), b"namespac", 2)
    packed = bytes(form.pack(KEY, torch.tensor([[[1.0, -2.0]]]), shuffle=False))
    assert packed[:PAYLOAD_AT].hex() == "50414345010300006e616d657370616301000000010000000200000000000000" + (
        "0400000000000000" + "00" * 24
    )
    assert packed[PAYLOAD_AT:-8].hex() == "803f00c0"
    assert len(packed) == 64 + 4 + 8


def test_an_unknown_dtype_lists_the_known() -> None:
    with pytest.raises(BadInput, match="bfloat16, float32, float64, int8"):
        codec_for("fp4")
