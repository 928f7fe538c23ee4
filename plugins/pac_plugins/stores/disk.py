"""Entries on disk, in append-only shards that are memory-mapped."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence

from pac_core.contracts.store import Buffer, Store, StoreOptions, StoreStats
from pac_core.errors import BadInput, StoreFull
from pac_plugins.stores import shard as shards
from pac_plugins.stores.appender import Appender
from pac_plugins.stores.index import Index, Place
from pac_plugins.stores.shard import ALIGN, SUFFIX, Record, Shard
from pac_plugins.stores.window import Window

SHARD_BYTES = 256 << 20
_SHARDS_IN_BUDGET = 8


class DiskStore(Store):
    """Survives kills and power cuts, is read by any number of processes while any number write.

    Each writing process appends to a shard of its own, which it holds a lock on; a shard that is not full is taken up
    again by the next process. The index is in memory and made by reading the record headers when the store is opened
    (10 microseconds an entry, 100 if they come from the disk). Entries written by others are seen after `refresh`.

    ``budget_bytes`` bounds the files, headers and deleted records included. Where it is reached, shards without a live
    record go first; then ``when_full="evict"`` removes whole shards, the one used longest ago first, and ``"error"``
    compacts if that helps. A shard is at most an eighth of the budget (256 MiB without one), or one entry. Several
    processes that write under one budget may exceed it by what they wrote since they last looked.

    Args:
        options: ``path`` is the folder; other files in it are left alone.
        shard_bytes: size from which a shard takes no more records.

    Raises:
        BadInput: no path, or it cannot be made or read.
    """

    shared = True

    def __init__(self, options: StoreOptions, *, shard_bytes: int = SHARD_BYTES) -> None:
        if options.path is None:
            raise BadInput("store 'disk' needs a folder: give --cache-dir DIR (from Python: path=...)")
        self.path = options.path
        self._budget = options.budget_bytes
        self._evicts = options.when_full == "evict"
        self._lock = threading.RLock()
        self._index = Index()
        cap = shard_bytes if self._budget is None else min(shard_bytes, self._budget // _SHARDS_IN_BUDGET)
        self._appender = Appender(self.path, self._index, cap)
        self._window = Window()
        self._closed = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.refresh()
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"cannot use {self.path} as a cache folder: {reason}; choose another") from error

    # reading

    def get_many(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        with self._lock:
            self._check_open()
            self._window.turn()
        return [self._get(key) for key in keys]

    def prefetch_many(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._check_open()
            places = [self._index.get(key) for key in keys]
        for place in places:
            if place is not None:
                self._window.prefetch(place.shard, place.record)

    def _get(self, key: bytes) -> Buffer | None:
        for _ in range(3):  # another process may compact the shard away meanwhile
            with self._lock:
                place = self._index.get(key)
                if place is None:
                    return None
                self._use(place.shard)
            try:
                return self._window.view(place.shard, place.record)
            except FileNotFoundError:
                self.refresh()
        return None

    def peek_many(self, keys: Sequence[bytes], size: int) -> list[Buffer | None]:
        with self._lock:
            self._check_open()
            places = [self._index.get(key) for key in keys]
        found: list[Buffer | None] = []
        for place in places:
            found.append(None if place is None else _read_start(place, size))
        return found

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        with self._lock:
            self._check_open()
            return [key in self._index for key in keys]

    def keys(self) -> Iterator[bytes]:
        with self._lock:
            self._check_open()
            return iter(self._index)

    def stats(self) -> StoreStats:
        with self._lock:
            self._check_open()
            return StoreStats(len(self._index), self._index.live_bytes, self._index.raw_bytes)

    def details(self) -> dict[str, int]:
        """Number of shards, bytes of their files, and bytes of deleted records in them."""
        with self._lock:
            self._check_open()
            return {
                "shards": len(self._index.shards),
                "file_bytes": self._index.file_bytes,
                "dead_bytes": sum(s.dead for s in self._index.shards.values()),
            }

    # writing

    def put_many(self, items: Sequence[tuple[bytes, Buffer]]) -> None:
        with self._lock:
            self._check_open()
            for key, value in items:
                if key not in self._index:
                    self._append(key, value)

    def _append(self, key: bytes, value: Buffer) -> None:
        self._make_room(shards.record_size(memoryview(value).nbytes))
        shard, record = self._appender.append(key, value)
        self._use(shard)
        self._index.add(shard, record)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._check_open()
            doomed: dict[Shard, list[Record]] = {}
            for key in keys:
                for place in self._index.remove(key):
                    doomed.setdefault(place.shard, []).append(place.record)
            for shard, records in doomed.items():
                shards.mark_dead(shard, records)

    def flush(self) -> None:
        with self._lock:
            self._check_open()
            self._appender.sync()
            self._note_use()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                self.flush()
            finally:
                self._closed = True
                self._appender.release()
                self._window.close()

    # what other processes do

    def refresh(self) -> None:
        with self._lock:
            self._check_open()
            present = {entry.name: entry for entry in os.scandir(self.path) if entry.name.endswith(SUFFIX)}
            for name in [name for name in self._index.shards if name not in present]:
                self._forget(self._index.shards[name])
            for name, entry in sorted(present.items()):
                with contextlib.suppress(FileNotFoundError):
                    if name not in self._index.shards:
                        self._index.shards[name] = Shard(self.path / name, used=entry.stat().st_mtime)
                    shard = self._index.shards[name]
                    if entry.stat().st_size > shard.end and not self._appender.owns(shard):
                        self._index.read_on(shard)

    # room

    def compact(self) -> int:
        """Rewrite shards that hold deleted records, and with ``when_full="evict"`` go down to the budget.

        Copies are written and synced before a shard is removed, so a kill leaves both, which is harmless.
        """
        with self._lock:
            self._check_open()
            self.refresh()
            before = self._index.file_bytes
            self._squeeze()
            if self._evicts:
                self._evict(0)
            return max(before - self._index.file_bytes, 0)

    def _squeeze(self) -> None:
        """Rewrite the shards that hold deleted records."""
        self.flush()
        self._appender.release()
        for shard in sorted(self._index.shards.values(), key=lambda s: s.live):
            if shard.dead or shard.end <= ALIGN:
                self._rewrite(shard)
        self.flush()

    def _rewrite(self, shard: Shard) -> None:
        fd = shards.lock(shard.path)
        if fd is None:
            return
        try:
            if shard.end == 0 and os.fstat(fd).st_size >= ALIGN:
                return  # not a shard of this format: not ours to remove
            self._index.read_on(shard)
            for key, place in self._index.places_in(shard):
                value = self._window.view(shard, place.record)
                if len(value) == place.record.length:  # else it cannot be read, and goes with the shard
                    self._index.move(*self._appender.append(key, value))
            self.flush()
            self._discard(shard)
        finally:
            os.close(fd)

    def _make_room(self, size: int) -> None:
        if self._budget is None or self._index.file_bytes + size + ALIGN <= self._budget:
            return
        self.refresh()
        self._drop_empty()
        if self._evicts and size + 2 * ALIGN <= self._budget:
            self._evict(size + ALIGN)
        elif self._index.file_bytes - self._index.live_bytes > size:
            self._squeeze()
        if self._index.file_bytes + size + ALIGN > self._budget:
            raise StoreFull(
                f"store 'disk' in {self.path} is full: {self._index.file_bytes:,} bytes held, {size:,} more asked for, "
                f"budget_bytes is {self._budget:,}; raise it, let old entries go with when_full='evict', or run "
                "'pac cache prune'"
            )

    def _drop_empty(self) -> None:
        for shard in [s for s in self._index.shards.values() if s.live == 0 and s.end >= ALIGN]:
            self._remove_shard(shard)

    def _evict(self, size: int) -> None:
        """Remove the shards used longest ago until ``size`` more bytes fit; those that others write to stay."""
        for shard in sorted(self._index.shards.values(), key=lambda s: s.used):
            if self._budget is None or self._index.file_bytes + size <= self._budget:
                return
            self._remove_shard(shard)

    def _remove_shard(self, shard: Shard) -> None:
        if self._appender.owns(shard):
            self._appender.release()
        fd = shards.lock(shard.path)
        if fd is not None:
            self._discard(shard)
            os.close(fd)

    def _discard(self, shard: Shard) -> None:
        shard.path.unlink(missing_ok=True)
        self._forget(shard)

    def _forget(self, shard: Shard) -> None:
        self._index.lose(shard)
        self._window.forget(shard.path)

    def _use(self, shard: Shard) -> None:
        shard.used, shard.touched = time.time(), True

    def _note_use(self) -> None:
        """Keep in the files' times when shards were used, so that eviction knows after a restart."""
        for shard in self._index.shards.values():
            if shard.touched:
                shard.touched = False
                with contextlib.suppress(OSError):
                    os.utime(shard.path, (shard.used, shard.used))

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the store is closed")


def _read_start(place: Place, size: int) -> Buffer | None:
    """The first ``size`` bytes of a value, read without touching the rest; None if the shard is gone."""
    try:
        with open(place.shard.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), min(size, place.record.length), place.record.value_at)
    except FileNotFoundError:
        return None
