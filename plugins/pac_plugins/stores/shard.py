"""Shard files: their format, reading them back after anything, and appending to them.

A shard is a 64-byte file header and records, each at a multiple of 64 bytes: a 64-byte record header, the value, and
padding. A record is complete if the file is long enough for it, so a kill while one is written leaves a tail that
readers ignore and the next writer of the shard cuts off. A deleted record has one byte of its header overwritten, which
is outside the header's checksum; so deletion needs no order among files, and half a deletion does not exist.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pac_core.contracts.store import KEY_BYTES, Buffer
from pac_core.errors import RunFailed, StoreFull

SUFFIX = ".shard"
ALIGN = 64
FILE_HEADER = b"PACSHARD\x01".ljust(ALIGN, b"\0")

_RECORD = struct.Struct(f"<4sB3xQ{KEY_BYTES}sI28x")  # magic, state, length, key, checksum of magic, length and key
_MAGIC = b"PACR"
_STATE_AT = 4
_LIVE, _DEAD = 0xA5, 0x00
_RESYNC_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(eq=False)
class Shard:
    """What one process knows of a shard.

    Attributes:
        path: the file.
        end: bytes up to which it was read and found whole; 0 if it has no valid file header yet.
        live: bytes of records in it that the index points to, headers and padding included.
        used: when it was last read or written, seconds since the epoch.
    """

    path: Path
    end: int = 0
    live: int = 0
    used: float = 0.0
    touched: bool = field(default=False, repr=False)

    @property
    def dead(self) -> int:
        """Bytes that compaction would give back."""
        return max(self.end - ALIGN, 0) - self.live


class Record(NamedTuple):
    """One record: ``offset`` is where its header starts, ``length`` the bytes of its value."""

    key: bytes
    offset: int
    length: int

    @property
    def value_at(self) -> int:
        return self.offset + ALIGN

    @property
    def size(self) -> int:
        return record_size(self.length)


def record_size(length: int) -> int:
    """Bytes that a value of ``length`` bytes takes in a shard."""
    return ALIGN + -(-length // ALIGN) * ALIGN


def scan(shard: Shard) -> Iterator[Record]:
    """The live records after ``shard.end``, which moves on to the end of the last whole one.

    A damaged header is skipped by looking for the next sound one; what follows a torn record is left alone.
    """
    with open(shard.path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if shard.end == 0:
            if os.pread(file.fileno(), ALIGN, 0) != FILE_HEADER:
                return
            shard.end = ALIGN
        offset = shard.end
        while offset + ALIGN <= size:
            parsed = _parse(os.pread(file.fileno(), ALIGN, offset), offset)
            if parsed is None:
                offset = _resync(file.fileno(), offset + ALIGN, size)
                continue
            record, live = parsed
            if offset + record.size > size:
                return
            offset = shard.end = offset + record.size
            if live:
                yield record


def _parse(header: bytes, offset: int) -> tuple[Record, bool] | None:
    if len(header) < ALIGN:
        return None
    magic, state, length, key, check = _RECORD.unpack(header)
    if magic != _MAGIC or check != _check(length, key):
        return None
    return Record(key, offset, length), state == _LIVE


def _check(length: int, key: bytes) -> int:
    return zlib.crc32(_MAGIC + length.to_bytes(8, "little") + key)


def _resync(fd: int, offset: int, size: int) -> int:
    """Offset of the next sound record header at or after ``offset``, or ``size``."""
    while offset < size:
        chunk = os.pread(fd, _RESYNC_BYTES, offset)
        found = chunk.find(_MAGIC)
        while found >= 0:
            if found % ALIGN == 0 and _parse(os.pread(fd, ALIGN, offset + found), offset + found):
                return offset + found
            found = chunk.find(_MAGIC, found + 1)
        offset += _RESYNC_BYTES
    return size


def mark_dead(shard: Shard, records: list[Record]) -> None:
    """Delete records on disk; does nothing where the file is gone or may not be written."""
    try:
        with open(shard.path, "r+b", buffering=0) as file:
            for record in records:
                os.pwrite(file.fileno(), bytes([_DEAD]), record.offset + _STATE_AT)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise


def lock(path: Path) -> int | None:
    """Open ``path`` and lock it against other writers; None if one has it, it is gone, or it may not be written.

    The lock ends when the file descriptor is closed.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            return None
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(fd).st_ino:  # else it was removed between the two calls
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


class Writer:
    """Appends to one shard, which no other process writes to meanwhile.

    Args:
        shard: what is known of it; its ``end`` is where the next record goes.
        fd: from `lock`; closed by `close`.
    """

    def __init__(self, shard: Shard, fd: int) -> None:
        self.shard = shard
        self.pid = os.getpid()
        self._fd = fd

    @classmethod
    def create(cls, folder: Path) -> Writer:
        """A writer of a new shard in ``folder``.

        Raises:
            StoreFull: the disk has no room for it.
        """
        while True:
            path = folder / f"{time.time_ns():016x}-{secrets.token_hex(4)}{SUFFIX}"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except OSError as error:
                raise _failure(error, folder) from error
            fd = lock(path)
            if fd is not None:
                writer = cls(Shard(path, used=time.time()), fd)
                writer._begin(folder)
                return writer

    def _begin(self, folder: Path) -> None:
        try:
            self._write([memoryview(FILE_HEADER)])
        except OSError as error:
            self.shard.path.unlink(missing_ok=True)
            os.close(self._fd)
            raise _failure(error, folder) from error

    def cut_tail(self) -> None:
        """Remove what a killed writer left half written."""
        os.ftruncate(self._fd, self.shard.end)

    def append(self, key: bytes, value: Buffer) -> Record:
        """Write a record; whole, or not at all.

        Raises:
            StoreFull: the disk is full; the shard is as before.
        """
        view = memoryview(value).cast("B")
        record = Record(key, self.shard.end, view.nbytes)
        header = _RECORD.pack(_MAGIC, _LIVE, record.length, key, _check(record.length, key))
        padding = bytes(record.size - ALIGN - record.length)
        try:
            self._write([memoryview(header), view, memoryview(padding)])
        except OSError as error:
            with contextlib.suppress(OSError):
                self.cut_tail()
            raise _failure(error, self.shard.path.parent) from error
        return record

    def _write(self, parts: list[memoryview]) -> None:
        """Write parts one after another at the end of the shard, which only then moves."""
        at = self.shard.end
        parts = [part for part in parts if part.nbytes]
        while parts:
            written = os.pwritev(self._fd, parts, at)
            at += written
            while parts and written >= parts[0].nbytes:
                written -= parts.pop(0).nbytes
            if parts:
                parts[0] = parts[0][written:]
        self.shard.end = at

    def sync(self) -> None:
        """Return once all records are on the disk itself.

        Raises:
            StoreFull: the file system had promised room that it does not have.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _failure(error, self.shard.path.parent) from error

    def close(self) -> None:
        """Release the shard to other writers, without syncing."""
        os.close(self._fd)


def _failure(error: OSError, folder: Path) -> RunFailed:
    """`StoreFull` if ``error`` says that there is no room, else `RunFailed`."""
    if error.errno not in _NO_ROOM:
        return RunFailed(f"cannot write to the cache folder {folder}: {error.strerror or error}")
    try:
        status = os.statvfs(folder)
        free = f"{status.f_bavail * status.f_frsize:,} bytes free"
    except OSError:
        free = "room unknown"
    return StoreFull(
        f"no room on the disk of {folder} ({free}; {error.strerror}); what was written before is whole: free some "
        "space, run 'pac cache prune', or use another --cache-dir, then run again"
    )
