"""The LZ4 store and damaged values."""

from __future__ import annotations

import resource
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from pac_core.codecs import shuffle_bytes
from pac_core.contracts.store import StoreOptions
from pac_core.stores import open_store
from pac_plugins.stores.lz4 import Lz4Store
from pac_plugins.stores.memory import MemoryStore

KEY = b"k" * 16
VALUE = b"some text, " * 1000


def stored(value: bytes) -> tuple[Lz4Store, bytearray]:
    """A store with ``value``, and the bytes it keeps."""
    inner = MemoryStore(StoreOptions())
    store = Lz4Store(StoreOptions(inner=inner))
    store.put_many([(KEY, value)])
    return store, bytearray(inner.get_many([KEY])[0] or b"")


def read(kept: bytes) -> bytes | None:
    """What a store makes of these kept bytes."""
    inner = MemoryStore(StoreOptions())
    inner.put_many([(KEY, kept)])
    (value,) = Lz4Store(StoreOptions(inner=inner)).get_many([KEY])
    return None if value is None else bytes(value)


@pytest.mark.parametrize("where", [0, 3])
def test_a_foreign_value_is_unreadable(where: int) -> None:
    kept = stored(VALUE)[1]
    kept[where] ^= 1
    assert read(kept) == b""


@pytest.mark.parametrize("claim", [0, 1, len(VALUE) - 1, len(VALUE) + 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_wrong_claimed_size_is_unreadable_and_allocates_nothing(claim: int) -> None:
    kept = stored(VALUE)[1]
    struct.pack_into("<Q", kept, 8, claim)
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(kept) == b""
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    tracemalloc.stop()


def test_cut_and_flipped_values_are_unreadable_or_of_the_right_length() -> None:
    kept = stored(VALUE)[1]
    for length in (0, 1, 127, 128, len(kept) - 1):
        assert read(kept[:length]) == b""
    for where in range(128, len(kept)):
        flipped = bytearray(kept)
        flipped[where] ^= 0x40
        assert len(read(flipped) or b"") in (0, len(VALUE))  # the cache's checksum catches the rest


def test_incompressible_values_are_kept_as_they_are() -> None:
    noise = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    _, kept = stored(noise.tobytes())
    assert len(kept) == 128 + 5000
    assert read(kept) == noise.tobytes()


def test_shuffled_activations_get_smaller() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    planes = torch.empty(200_000, dtype=torch.uint8)
    shuffle_bytes(values, planes)
    assert len(stored(planes.numpy().tobytes())[1]) < 0.88 * 200_000
    assert len(stored(values.view(torch.uint8).numpy().tobytes())[1]) > 0.99 * 200_000


def test_raw_sizes_are_known_after_reopening(tmp_path: Path) -> None:
    with open_store("lz4+disk", tmp_path) as store:
        store.put_many([(KEY, VALUE)])
    with open_store("lz4+disk", tmp_path) as store:
        assert store.stats().bytes_raw == len(VALUE)
        assert store.stats().bytes < len(VALUE) / 10
        store.delete_many([KEY])
        assert store.stats().bytes_raw == 0
