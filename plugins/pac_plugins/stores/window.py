"""Views of memory-mapped shards, with the memory that they take kept to the last call."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from pac_plugins.stores.shard import Record, Shard

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14: fault pages in at once, and report what cannot be read
_MOST_OPEN = 64
_PAGE = mmap.PAGESIZE

_SMALL = 1 << 18  # bytes up to which reading a copy is faster than faulting pages in, measured

Range = tuple[mmap.mmap, int, int]


@dataclass(frozen=True)
class _Opened:
    """A shard's file and its map."""

    file: FileIO
    mapped: mmap.mmap


class Window:
    """Hands out read-only views of records.

    Mapped pages count as memory of the process. At the next `turn` the pages of a view are given back; the
    view stays right, since its pages would simply be read again.
    """

    def __init__(self) -> None:
        self._shards: OrderedDict[Path, _Opened] = OrderedDict()
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
            opened = self._open(shard.path, last)
        if opened is None:
            return memoryview(b"")
        if record.length <= _SMALL:
            return _read(opened.file, first, record.length)
        mapped = opened.mapped
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
                opened = self._open(shard.path, record.value_at + record.length)
            if opened is not None and record.length:
                opened.mapped.madvise(mmap.MADV_WILLNEED, start, record.value_at + record.length - start)

    def _open(self, path: Path, size: int) -> _Opened | None:
        """A shard of at least ``size`` bytes, mapped anew if the file has grown; None if the file is shorter."""
        opened = self._shards.pop(path, None)
        if opened is None or len(opened.mapped) < size:
            file = open(path, "rb", buffering=0)  # noqa: SIM115  kept open, and closed with the last reference
            if os.fstat(file.fileno()).st_size < size:
                return None
            opened = _Opened(file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._shards[path] = opened
        if len(self._shards) > _MOST_OPEN:  # bounds open files; views in use keep theirs alive
            self._shards.popitem(last=False)
        return opened

    def forget(self, path: Path) -> None:
        """Drop the map of a shard that is no more."""
        with self._lock:
            self._shards.pop(path, None)

    def close(self) -> None:
        """Drop all maps; views in use keep theirs alive."""
        with self._lock:
            self._shards.clear()
            self._ranges = []


def _read(file: FileIO, first: int, length: int) -> memoryview:
    """Bytes of a file; empty if it is too short or cannot be read."""
    with contextlib.suppress(OSError):
        found = os.pread(file.fileno(), length, first)
        if len(found) == length:
            return memoryview(found)
    return memoryview(b"")


def _readable(mapped: mmap.mmap, start: int, length: int) -> bool:
    """Read the range from disk, so that a bad sector or a shortened file is an answer and not a fatal signal."""
    if not length:
        return True
    try:
        mapped.madvise(_POPULATE_READ, start, length)
    except OSError as error:
        return error.errno in (errno.EINVAL, errno.ENOSYS)  # a kernel without it: pages come in as they are read
    return True
