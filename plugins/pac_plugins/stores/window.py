"""Views of memory-mapped shards, with the memory that they take kept to the last call."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections import OrderedDict
from pathlib import Path

from pac_plugins.stores.shard import Record, Shard

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14: fault pages in at once, and report what cannot be read
_MOST_MAPS = 64
_PAGE = mmap.PAGESIZE

Range = tuple[mmap.mmap, int, int]


class Window:
    """Hands out read-only views of records.

    Mapped pages count as memory of the process. At the next `turn` the pages of a view are given back; the
    view stays right, since its pages would simply be read again.
    """

    def __init__(self) -> None:
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()
        self._ranges: list[Range] = []
        self._lock = threading.Lock()

    def turn(self) -> None:
        """A new call begins: give back the pages of the last one."""
        with self._lock:
            old, self._ranges = self._ranges, []
        for mapped, start, length in old:
            with contextlib.suppress(OSError, ValueError):
                mapped.madvise(mmap.MADV_DONTNEED, start, length)

    def view(self, shard: Shard, record: Record) -> memoryview:
        """The value of a record; empty if the file is too short for it or cannot be read.

        Raises:
            FileNotFoundError: the shard has been removed.
        """
        first, last = record.value_at, record.value_at + record.length
        with self._lock:
            mapped = self._map(shard.path, last)
        if mapped is None:
            return memoryview(b"")
        start = first // _PAGE * _PAGE
        if not _readable(mapped, start, last - start):
            return memoryview(b"")
        with self._lock:
            self._ranges.append((mapped, start, last - start))
        return memoryview(mapped)[first:last]

    def prefetch(self, shard: Shard, record: Record) -> None:
        """Let the system begin to read a record from disk; a shard that is gone is no concern of a hint."""
        start = record.value_at // _PAGE * _PAGE
        with contextlib.suppress(OSError, ValueError):
            with self._lock:
                mapped = self._map(shard.path, record.value_at + record.length)
            if mapped is not None and record.length:
                mapped.madvise(mmap.MADV_WILLNEED, start, record.value_at + record.length - start)

    def _map(self, path: Path, size: int) -> mmap.mmap | None:
        """A map of a shard of at least ``size`` bytes, made anew if the file has grown; None if the file is shorter."""
        mapped = self._maps.pop(path, None)
        if mapped is None or len(mapped) < size:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size < size:
                    return None
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[path] = mapped
        if len(self._maps) > _MOST_MAPS:  # bounds open files; views in use keep theirs alive
            self._maps.popitem(last=False)
        return mapped

    def forget(self, path: Path) -> None:
        """Drop the map of a shard that is no more."""
        with self._lock:
            self._maps.pop(path, None)

    def close(self) -> None:
        """Drop all maps; views in use keep theirs alive."""
        with self._lock:
            self._maps.clear()
            self._ranges = []


def _readable(mapped: mmap.mmap, start: int, length: int) -> bool:
    """Read the range from disk, so that a bad sector or a shortened file is an answer and not a fatal signal."""
    if not length:
        return True
    try:
        mapped.madvise(_POPULATE_READ, start, length)
    except OSError as error:
        return error.errno in (errno.EINVAL, errno.ENOSYS)  # a kernel without it: pages come in as they are read
    return True
