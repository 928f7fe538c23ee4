"""The store passes the public suite, is found by name, and notices damage."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pac_core.contracts.store import Store, StoreOptions
from pac_core.registry import Registry
from pac_core.stores import open_store
from pac_core.testing import StoreSuite

KEY = b"k" * 16
VALUE = b"some text, " * 1000


class TestZstdAroundMemory(StoreSuite):
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        return open_store("zstd+memory", **options)


class TestZstdAroundDisk(StoreSuite):
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        return open_store("zstd+disk", tmp_path, **options)


def test_it_is_found_through_its_entry_point() -> None:
    (entry,) = [e for e in Registry().listing("stores") if e.name == "zstd"]
    assert entry.distribution == "pac-store-zstd"
    assert Registry().get("stores", "zstd") is entry.factory


def kept(value: bytes) -> bytearray:
    """What the inner store is given for ``value``."""
    inner = open_store("memory")
    Registry().get("stores", "zstd")(StoreOptions(inner=inner)).put_many([(KEY, value)])
    return bytearray(inner.get_many([KEY])[0] or b"")


def read(stored: bytes) -> bytes:
    """What the store makes of what the inner store has."""
    inner = open_store("memory")
    inner.put_many([(KEY, stored)])
    (value,) = Registry().get("stores", "zstd")(StoreOptions(inner=inner)).get_many([KEY])
    return bytes(value)


def test_values_get_smaller() -> None:
    assert len(kept(VALUE)) < 300
    assert read(kept(VALUE)) == VALUE
    assert read(kept(bytes(50_000_000))) == bytes(50_000_000), "the most extreme ratio is accepted"


@pytest.mark.parametrize("claim", [0, 1, len(VALUE) + 1, 1 << 22, 1 << 40, (1 << 64) - 1])
def test_a_wrong_claimed_size_is_unreadable_and_allocates_nothing(claim: int) -> None:
    stored = kept(VALUE)
    struct.pack_into("<Q", stored, 8, claim)
    tracemalloc.start()
    assert read(stored) == b""
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_cut_and_flipped_values_are_unreadable_or_of_the_right_length() -> None:
    stored = kept(VALUE)
    for length in (0, 1, 127, 128, 130, len(stored) - 1):
        assert read(stored[:length]) == b""
    for where in range(128, len(stored)):
        flipped = bytearray(stored)
        flipped[where] ^= 0x40
        assert len(read(flipped)) in (0, len(VALUE))  # the cache's checksum catches the rest
