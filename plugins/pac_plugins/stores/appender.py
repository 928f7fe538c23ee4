"""Which shard a process appends to: its own, one taken up from before, or a new one."""

from __future__ import annotations

import os
from pathlib import Path

from pac_core.contracts.store import Buffer
from pac_plugins.stores import shard as shards
from pac_plugins.stores.index import Index, Place
from pac_plugins.stores.shard import ALIGN, Shard, Writer


class Appender:
    """Appends records to a shard that this process holds a lock on, and goes on to the next when it is full.

    Args:
        folder: of the shards.
        index: what is known of them; new shards are added to it, records are not.
        shard_bytes: size from which a shard takes no more records.
    """

    def __init__(self, folder: Path, index: Index, shard_bytes: int) -> None:
        self._folder = folder
        self._index = index
        self._shard_bytes = shard_bytes
        self._writer: Writer | None = None
        self._unsynced = False

    def append(self, key: bytes, value: Buffer) -> Place:
        """Write a record; whole, or not at all.

        Raises:
            StoreFull: the disk is full.
        """
        writer = self._writer_for(shards.record_size(memoryview(value).nbytes))
        record = writer.append(key, value)
        self._unsynced = True
        return Place(writer.shard, record)

    def owns(self, shard: Shard) -> bool:
        """Whether ``shard`` is the one being appended to."""
        return self._writer is not None and self._writer.shard is shard

    def sync(self) -> None:
        """Return once all records are on the disk itself.

        Raises:
            StoreFull: the file system had promised room that it does not have.
        """
        if self._writer is not None and self._unsynced:
            self._writer.sync()
            _sync_folder(self._folder)
            self._unsynced = False

    def release(self) -> None:
        """Leave the shard to other writers; what was not synced is still not."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _writer_for(self, size: int) -> Writer:
        writer = self._writer
        if writer is not None and writer.pid != os.getpid():
            self._writer = writer = None  # a forked child leaves the shard to its parent
        if writer is not None and writer.shard.end > ALIGN and writer.shard.end + size > self._shard_bytes:
            self.sync()
            self.release()
        if self._writer is None:
            self._writer = self._take_up(size) or self._create()
        return self._writer

    def _take_up(self, size: int) -> Writer | None:
        """A writer of an existing shard that has room for ``size`` bytes and that nobody else writes to."""
        for shard in sorted(self._index.shards.values(), key=lambda s: s.path.name, reverse=True):
            if shard.dead or not ALIGN <= shard.end <= self._shard_bytes - size:
                continue  # what is to be compacted is not added to
            fd = shards.lock(shard.path)
            if fd is None:
                continue
            self._index.read_on(shard)
            writer = Writer(shard, fd)
            if shard.end + size <= self._shard_bytes:
                writer.cut_tail()
                return writer
            writer.close()
        return None

    def _create(self) -> Writer:
        writer = Writer.create(self._folder)
        self._index.shards[writer.shard.path.name] = writer.shard
        return writer


def _sync_folder(folder: Path) -> None:
    """Make the names of new files survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
