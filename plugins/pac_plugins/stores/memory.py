"""Entries in memory, with a byte budget and the least recently used going first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from pac_core.contracts.store import Buffer, Store, StoreOptions, StoreStats
from pac_core.errors import StoreFull


class MemoryStore(Store):
    """Copies of the values in one process's memory; gone when it ends.

    With ``when_full="evict"`` the entries that were put or got longest ago make room. A value larger than the whole
    budget is `StoreFull` either way.
    """

    def __init__(self, options: StoreOptions) -> None:
        self._budget = options.budget_bytes
        self._evicts = options.when_full == "evict"
        self._entries: OrderedDict[bytes, bytes] | None = OrderedDict()  # least recently used first; None once closed
        self._bytes = 0
        self._lock = threading.Lock()

    def put_many(self, items: Sequence[tuple[bytes, Buffer]]) -> None:
        with self._lock:
            entries = self._open()
            for key, value in items:
                if key in entries:
                    entries.move_to_end(key)
                    continue
                self._make_room(entries, memoryview(value).nbytes)
                entries[key] = bytes(value)
                self._bytes += len(entries[key])

    def get_many(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        with self._lock:
            entries = self._open()
            found: list[Buffer | None] = []
            for key in keys:
                value = entries.get(key)
                if value is not None:
                    entries.move_to_end(key)
                found.append(None if value is None else memoryview(value))
            return found

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        with self._lock:
            entries = self._open()
            return [key in entries for key in keys]

    def delete_many(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            entries = self._open()
            for key in keys:
                self._bytes -= len(entries.pop(key, b""))

    def keys(self) -> Iterator[bytes]:
        with self._lock:
            return iter(list(self._open()))

    def flush(self) -> None:
        self._open()

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(len(self._open()), self._bytes, self._bytes)

    def close(self) -> None:
        with self._lock:
            self._entries = None

    def _make_room(self, entries: OrderedDict[bytes, bytes], size: int) -> None:
        if self._budget is None or self._bytes + size <= self._budget:
            return
        if not self._evicts or size > self._budget:
            raise StoreFull(
                f"store 'memory' is full: {self._bytes:,} bytes held, {size:,} more asked for, budget_bytes is "
                f"{self._budget:,}; raise it, let old entries go with when_full='evict', or use store 'disk'"
            )
        while self._bytes + size > self._budget:
            _, oldest = entries.popitem(last=False)
            self._bytes -= len(oldest)

    def _open(self) -> OrderedDict[bytes, bytes]:
        if self._entries is None:
            raise ValueError("the store is closed")
        return self._entries
