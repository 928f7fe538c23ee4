"""Keys and values for tests of stores: which value belongs to a key can be told from its number alone."""

from __future__ import annotations

import random

import numpy as np

from pac_core.contracts.store import Buffer, Store

KIB = 1024
MIB = KIB * KIB


def key_of(number: int) -> bytes:
    """A 16-byte key."""
    return random.Random(number).randbytes(16)


def value_of(number: int, size: int | None = None) -> bytes:
    """Incompressible bytes that belong to ``key_of(number)``; the size varies from 0 to 300 KiB if not given."""
    generator = np.random.default_rng(number)
    length = int(generator.integers(0, 300 * KIB)) if size is None else size
    return generator.bytes(length)


def put(store: Store, *numbers: int, size: int | None = None) -> None:
    """Store the values of ``numbers``."""
    store.put_many([(key_of(n), value_of(n, size)) for n in numbers])


def holds(store: Store, *numbers: int, size: int | None = None) -> bool:
    """Whether all values of ``numbers`` are there and right; read a few at a time, as a training run does."""
    for start in range(0, len(numbers), 8):
        some = numbers[start : start + 8]
        found = store.get_many([key_of(n) for n in some])
        if not all(same(value, value_of(n, size)) for n, value in zip(some, found)):
            return False
    return True


def same(found: Buffer | None, expected: bytes) -> bool:
    """Whether a store's answer is these bytes."""
    return found is not None and bytes(found) == expected
