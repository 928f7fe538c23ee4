"""Opening a store by the name users give, and the base of stores that compress what another store keeps."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pac_core.contracts.store import Buffer, Store, StoreOptions, StoreStats
from pac_core.errors import BadInput, NeedsInnerStore
from pac_core.registry import Registry

StoreFactory = Callable[[StoreOptions], Store]


def open_store(
    name: str,
    path: str | Path | None = None,
    *,
    budget_bytes: int | None = None,
    when_full: Literal["error", "evict"] = "error",
    registry: Registry | None = None,
) -> Store:
    """The store called ``name``: a registered name, or wrappers and what they wrap, as in ``lz4+disk``.

    A wrapper alone wraps ``disk`` where a path is given, else ``memory``.

    Args:
        name: as users write it.
        path: folder for stores that keep something on disk.
        budget_bytes: most bytes to hold; None for no limit.
        when_full: what happens at the budget: ``"error"`` or ``"evict"``.
        registry: where names are looked up; by default everything installed.

    Raises:
        BadInput: an unknown name (`UnknownPlugin`), or the store refuses its options.
    """
    return open_named_store(name, path, budget_bytes=budget_bytes, when_full=when_full, registry=registry)[1]


def open_named_store(
    name: str,
    path: str | Path | None = None,
    *,
    budget_bytes: int | None = None,
    when_full: Literal["error", "evict"] = "error",
    registry: Registry | None = None,
) -> tuple[str, Store]:
    """Like `open_store`; also returns the full name, in which the store that a lone wrapper wraps is spelt out."""
    if when_full not in ("error", "evict"):
        raise BadInput(f"when_full is '{when_full}'; choose 'error' or 'evict'")
    if budget_bytes is not None and budget_bytes <= 0:
        raise BadInput(f"budget_bytes is {budget_bytes}; it must be positive, or None for no limit")
    registry = registry or Registry()
    folder = None if path is None else Path(path).expanduser()
    parts = name.split("+")
    factories = [registry.get("stores", part) for part in parts]  # complain of a name before anything is opened
    try:
        return name, _build(factories, StoreOptions(folder, budget_bytes, when_full))
    except NeedsInnerStore:
        innermost = "memory" if folder is None else "disk"
        factories.append(registry.get("stores", innermost))
        return f"{name}+{innermost}", _build(factories, StoreOptions(folder, budget_bytes, when_full))


def _build(factories: list[StoreFactory], options: StoreOptions) -> Store:
    """The innermost store, then each wrapper around it."""
    store: Store | None = None
    for factory in reversed(factories):
        try:
            store = factory(StoreOptions(options.path, options.budget_bytes, options.when_full, store))
        except BaseException:
            if store is not None:
                store.close()
            raise
    assert store is not None
    return store


class CompressingStore(Store):
    """Base of stores that compress values and leave keeping them to an inner store.

    A subclass defines `compress`, `decompress` and `mark`. A value that does not get smaller is kept as it is. Before
    the compressed bytes stands a header with the raw size and the first 64 raw bytes, so that `peek_many` and `stats`
    need not decompress. Budget and eviction are the inner store's, in compressed bytes.

    Attributes:
        mark: 4 bytes that tell this compression's values from others.
        most_ratio: no sound value decompresses to more than this times its size, so a damaged header cannot make the
            reader allocate more.
    """

    compresses = True
    mark: bytes
    most_ratio: int

    def __init__(self, options: StoreOptions) -> None:
        if options.inner is None:
            raise NeedsInnerStore("a compressing store needs one to keep its values, as in 'NAME+disk'")
        self.inner = options.inner
        self.shared = self.inner.shared
        self._raw_sizes: dict[bytes, int] = {}  # of keys seen by `stats`

    @abstractmethod
    def compress(self, value: memoryview) -> bytes:
        """The compressed form of ``value``."""

    @abstractmethod
    def decompress(self, value: memoryview, size: int) -> Buffer | None:
        """The raw form, ``size`` > 0 bytes; None if ``value`` is damaged. Must not allocate more than ``size``."""

    def put_many(self, items: Sequence[tuple[bytes, Buffer]]) -> None:
        known = self.inner.contains_many([key for key, _ in items])
        for (key, value), present in zip(items, known):
            if not present:  # one at a time, so that only one compressed copy is in memory
                self.inner.put_many([(key, self._pack(memoryview(value).cast("B")))])

    def _pack(self, value: memoryview) -> bytes:
        packed = self.compress(value) if value.nbytes else b""
        smaller = len(packed) < value.nbytes
        header = _HEADER.pack(self.mark, int(smaller), value.nbytes, bytes(value[:_START]))
        return b"".join((header, packed if smaller else value))

    def get_many(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        return [None if value is None else self._unpack(memoryview(value)) for value in self.inner.get_many(keys)]

    def prefetch_many(self, keys: Sequence[bytes]) -> None:
        self.inner.prefetch_many(keys)

    def _unpack(self, value: memoryview) -> Buffer:
        """The raw value; empty if damaged."""
        header = self._header(value)
        if header is None:
            return b""
        packed, size, _ = header
        body = value[_HEADER.size :]
        if not packed:
            return body if len(body) == size else b""
        if not 0 < size <= len(body) * self.most_ratio:
            return b""
        raw = self.decompress(body, size)
        return b"" if raw is None or len(raw) != size else raw

    def _header(self, value: memoryview) -> tuple[bool, int, bytes] | None:
        """(compressed, raw size, first raw bytes) of a stored value; None if it is not one of this store's."""
        if len(value) < _HEADER.size:
            return None
        mark, packed, size, start = _HEADER.unpack_from(value)
        return (bool(packed), size, start[:size]) if mark == self.mark else None

    def peek_many(self, keys: Sequence[bytes], size: int) -> list[Buffer | None]:
        if size > _START:
            return super().peek_many(keys, size)
        found: list[Buffer | None] = []
        for value in self.inner.peek_many(keys, _HEADER.size):
            header = None if value is None else self._header(memoryview(value))
            found.append(None if value is None else b"" if header is None else header[2][:size])
        return found

    def stats(self) -> StoreStats:
        """As the inner store's, with raw bytes from the values' headers, read once for each key."""
        keys = list(self.inner.keys())
        fresh = [key for key in keys if key not in self._raw_sizes]
        for key, value in zip(fresh, self.inner.peek_many(fresh, _HEADER.size)):
            header = None if value is None else self._header(memoryview(value))
            self._raw_sizes[key] = 0 if header is None else header[1]
        self._raw_sizes = {key: self._raw_sizes.get(key, 0) for key in keys}
        inner = self.inner.stats()
        return StoreStats(inner.entries, inner.bytes, sum(self._raw_sizes.values()))

    def details(self) -> dict[str, int]:
        return self.inner.details()

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        return self.inner.contains_many(keys)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        self.inner.delete_many(keys)

    def keys(self) -> Iterator[bytes]:
        return self.inner.keys()

    def flush(self) -> None:
        self.inner.flush()

    def refresh(self) -> None:
        self.inner.refresh()

    def compact(self) -> int:
        return self.inner.compact()

    def close(self) -> None:
        self.inner.close()


_START = 64
_HEADER = struct.Struct(f"<4sB3xQ48x{_START}s")  # 128 bytes, so that a value kept as it is stays aligned
