"""Zstandard compression around another store."""

from __future__ import annotations

import threading

import zstandard

from pac_core.contracts.store import Buffer, StoreOptions
from pac_core.stores import CompressingStore


class ZstdStore(CompressingStore):
    """Level 1 of Zstandard: slower than LZ4 and smaller."""

    mark = b"ZSTD"
    most_ratio = 1 << 17  # a block of up to 128 KiB may be one repeated byte

    def __init__(self, options: StoreOptions) -> None:
        super().__init__(options)
        self._local = threading.local()  # contexts are costly to make and for one thread each

    def compress(self, value: memoryview) -> bytes:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = zstandard.ZstdCompressor(level=1)
        packed: bytes = self._local.compressor.compress(value)
        return packed

    def decompress(self, value: memoryview, size: int) -> Buffer | None:
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = zstandard.ZstdDecompressor()
        try:
            # the frame says its size too, and what it says is allocated: it must be what the store's header says
            if zstandard.get_frame_parameters(value).content_size != size:
                return None
            raw: bytes = self._local.decompressor.decompress(value)
        except zstandard.ZstdError:
            return None
        return raw
