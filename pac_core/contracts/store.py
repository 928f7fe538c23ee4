"""The store contract: where cache entries live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

KEY_BYTES = 16

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class StoreOptions:
    """What a store's factory is given.

    Attributes:
        path: folder for what the store keeps; None for stores that keep nothing on disk.
        budget_bytes: most bytes of entries it may hold; None for no limit.
        when_full: ``"error"`` raises `pac_core.errors.StoreFull`, ``"evict"`` drops the entries used longest ago.
        inner: the store that a wrapping store (compression, ...) writes to; None for stores that wrap nothing.
    """

    path: Path | None = None
    budget_bytes: int | None = None
    when_full: Literal["error", "evict"] = "error"
    inner: Store | None = None


@dataclass(frozen=True)
class StoreStats:
    """Sizes of a store: number of entries, their bytes as stored, and their bytes as given to ``put_many``."""

    entries: int
    bytes: int
    bytes_raw: int


class Store(ABC):
    """Keeps byte buffers under 16-byte keys. It knows nothing of tensors; the cache encodes and checks entries.

    The registered factory is ``factory(options: StoreOptions) -> Store``. A store that wraps another is named
    ``wrapper+inner`` by users, as in ``lz4+disk``; its factory raises `pac_core.errors.NeedsInnerStore` if
    ``options.inner`` is None, and its ``close`` closes the inner store. All calls are batched: one call for a
    mini-batch. A store may be used by several threads of a process; where `shared` is true several processes may read
    while one or more write. A key that is put again keeps one of the two values (values of equal keys are equal).

    Safety: a kill at any instant leaves every entry either whole or absent, and those flushed before present. A store
    that runs out of room raises `StoreFull` and stays readable with everything it acknowledged.

    Attributes:
        shared: other processes that open the same path see the entries after ``flush`` (and `refresh`).
        compresses: True if it gains from byte-shuffled input; the cache then shuffles.
    """

    shared: bool = False
    compresses: bool = False

    @abstractmethod
    def put_many(self, items: Sequence[tuple[bytes, Buffer]]) -> None:
        """Store each (key, value); the buffers may be reused by the caller once this returns.

        Raises:
            StoreFull: no room; the items before the one that did not fit may have been stored, none is half stored.
        """

    @abstractmethod
    def get_many(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        """Values in the order of ``keys``, None where absent. Read-only views are fine and stay valid until the store
        is closed or the next-but-one call of ``get_many`` from any thread, whichever is first. An entry that the store
        itself finds unreadable is returned as an empty buffer, which the cache counts as damaged.
        """

    @abstractmethod
    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each key is present, without reading values."""

    def peek_many(self, keys: Sequence[bytes], size: int) -> list[Buffer | None]:
        """The first ``size`` bytes of each value (all of a shorter one), None where absent.

        For listings, which would else read a whole cache. The default reads whole values, one at a time.
        """
        found = (self.get_many([key])[0] for key in keys)
        return [None if value is None else bytes(memoryview(value)[:size]) for value in found]

    @abstractmethod
    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys; absent ones are ignored."""

    @abstractmethod
    def keys(self) -> Iterator[bytes]:
        """All keys present when the call is made, in no particular order."""

    @abstractmethod
    def flush(self) -> None:
        """Return once everything put so far survives a kill (and, for stores on disk, a power cut)."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Current sizes; cheap."""

    @abstractmethod
    def close(self) -> None:
        """Flush and release everything held; further calls raise ValueError; closing twice is fine."""

    def refresh(self) -> None:  # noqa: B027 - most stores have nothing to do
        """Notice what other processes wrote since; a no-op where `shared` is false."""

    def prefetch_many(self, keys: Sequence[bytes]) -> None:  # noqa: B027 - most stores have nothing to do
        """A hint that ``get_many`` will be asked for these keys next; returns at once. Default: nothing to do."""

    def compact(self) -> int:
        """Give back room held by deleted entries; returns the bytes freed. Default: nothing to do."""
        return 0

    def details(self) -> dict[str, int]:
        """Further figures for listings, by name. ``file_bytes``, if there, is what the store takes on the disk."""
        return {}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
