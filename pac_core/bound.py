"""Reading and writing the entries of one backbone: which entry belongs to which tokens, and how batches are read."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pac_core.codecs import CastCodec, EntryFormat, codec_for
from pac_core.contracts.backbone import BackboneInfo
from pac_core.contracts.store import Store, StoreStats
from pac_core.examples import Segment
from pac_core.manifest import Namespace

logger = logging.getLogger("pac.cache")

FEW = 4
"""Entries that are in memory at once in the form in which the store keeps them."""


@dataclass
class CacheCounters:
    """What `BoundCache.load` has met so far, in entries; damaged ones count as neither hit nor miss."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0


class BoundCache:
    """The entries of one backbone, tap set and dtype. Safe to use from several threads.

    Attributes:
        counters: hits, misses and damaged entries so far.
        codec: how values are kept.
        dtype: dtype that values are computed with: float64 for a float64 backbone, else float32.
        entry_dtype: dtype in which the cache holds values, `dtype` if it is no number format of torch.
        namespace_id: 8 bytes that stand in every entry.
    """

    def __init__(self, store: Store, info: BackboneInfo, namespace: Namespace) -> None:
        self.counters = CacheCounters()
        self.codec = codec_for(namespace.dtype)
        self.dtype = torch.float64 if info.dtype == torch.float64 else torch.float32
        self.entry_dtype = self.codec.dtype if isinstance(self.codec, CastCodec) else self.dtype
        self._store = store
        self._d = info.hidden_size
        self._streams = {stream: len(indices) for stream, indices in namespace.taps.items()}
        self._alike = len(set(self._streams.values())) == 1
        self._taps_of: dict[bytes, int] = {}  # by key, where the streams' numbers of taps differ
        identity = json.dumps([namespace.fingerprint, sorted(namespace.taps.items()), namespace.dtype]).encode()
        self._hash = hashlib.blake2b(_field(identity), digest_size=16)
        self.namespace_id = hashlib.blake2b(identity, digest_size=8).digest()
        self._format = EntryFormat(self.codec, self.namespace_id, self._d)
        self._lock = threading.Lock()

    def keys(self, segments: Sequence[Segment]) -> list[bytes]:
        """The 16-byte key of each segment.

        It is blake2b over fingerprint, tap set, dtype, stream, token ids, token types and the context's: everything
        that the taps depend on, and nothing else.
        """
        found = []
        for segment in segments:
            state = self._hash.copy()
            state.update(segment.content)
            found.append(state.digest())
            if not self._alike:
                self._taps_of[found[-1]] = self._streams[segment.stream]
        return found

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each entry is there; it may still turn out damaged when it is loaded."""
        return self._store.contains_many(keys)

    def put(self, keys: Sequence[bytes], entries: Sequence[Tensor]) -> None:
        """Keep entries, each (taps, tokens, d) on the CPU in any float dtype; those that are there already are skipped.

        Raises:
            StoreFull: no room; the entries before stay.
        """
        if len(keys) != len(entries):
            raise ValueError(f"{len(keys)} keys for {len(entries)} entries")
        for key, entry, known in zip(keys, entries, self._store.contains_many(keys)):
            if entry.ndim != 3 or entry.shape[0] != self._taps(key) or entry.shape[2] != self._d:
                raise ValueError(
                    f"entry of shape {tuple(entry.shape)}; expected ({self._taps(key)}, tokens, {self._d})"
                )
            if not known:  # one at a time, so that only one encoded entry is in memory
                packed = self._format.pack(key, entry.detach(), shuffle=self._store.compresses)
                self._store.put_many([(key, packed)])

    def load(
        self, keys: Sequence[bytes], lengths: Sequence[int], out: Tensor | None = None
    ) -> tuple[Tensor, list[int]]:
        """Read entries into one ragged tensor.

        Args:
            keys: of segments of streams with one number of taps.
            lengths: tokens of each segment.
            out: (taps, sum of lengths, d) contiguous, of `dtype` or `entry_dtype`, to be filled; a new tensor of
                `dtype` if None. Passing one saves the cost of fresh memory.

        Returns:
            The values (taps, sum of lengths, d), and the indices of entries that were missing or damaged, whose slots
            hold anything. Damaged entries are deleted and logged.
        """
        taps = self._taps(keys[0]) if keys else next(iter(self._streams.values()), 0)
        values = self._room(taps, sum(lengths), out)
        missing, damaged, start = [], [], 0
        entries = (
            entry for first in range(0, len(keys), FEW) for entry in self._store.get_many(keys[first : first + FEW])
        )
        for i, (key, length, entry) in enumerate(zip(keys, lengths, entries, strict=True)):
            slot = values[:, start : start + length]
            start += length
            if entry is None:
                missing.append(i)
            elif not self._format.unpack(key, entry, taps, length, slot):
                damaged.append(i)
        if damaged:
            self._discard([keys[i] for i in damaged])
        with self._lock:
            self.counters.hits += len(keys) - len(missing) - len(damaged)
            self.counters.misses += len(missing)
            self.counters.damaged += len(damaged)
        return values, sorted(missing + damaged)

    def as_read(self, entry: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``entry`` (taps, tokens, d) as `load` would return it: rounded by the codec, in ``dtype``, or `dtype` if that
        is None."""
        out = torch.empty(entry.shape, dtype=dtype or self.dtype)
        payload = torch.empty(self.codec.payload_bytes(*entry.shape), dtype=torch.uint8)
        self.codec.encode(entry.detach(), payload, False)
        self.codec.decode(payload, out, False)
        return out

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove entries; those that are not there are skipped."""
        self._store.delete_many(keys)

    def prefetch(self, keys: Sequence[bytes]) -> None:
        """A hint that `load` will be asked for these keys next."""
        self._store.prefetch_many(keys)

    def flush(self) -> None:
        """Return once all entries put so far survive a kill."""
        self._store.flush()

    def refresh(self) -> None:
        """Notice what other processes wrote since."""
        self._store.refresh()

    @property
    def shared(self) -> bool:
        """Whether other processes that open the same folder see the entries."""
        return self._store.shared

    def stats(self) -> StoreStats:
        """Sizes of the whole store, all namespaces together."""
        return self._store.stats()

    def close(self) -> None:
        """Flush and release the store, for all that are bound to it; closing twice is fine."""
        self._store.close()

    def _taps(self, key: bytes) -> int:
        if self._alike:
            return next(iter(self._streams.values()))
        if key not in self._taps_of:
            raise ValueError(f"key {key.hex()} was not made by keys() of this cache")
        return self._taps_of[key]

    def _room(self, taps: int, tokens: int, out: Tensor | None) -> Tensor:
        shape = (taps, tokens, self._d)
        if out is None:
            return torch.empty(shape, dtype=self.dtype)
        if tuple(out.shape) != shape or out.dtype not in (self.dtype, self.entry_dtype) or not out.is_contiguous():
            raise ValueError(f"out is {tuple(out.shape)} {out.dtype}; expected contiguous {shape} {self.dtype}")
        return out

    def _discard(self, keys: list[bytes]) -> None:
        self._store.delete_many(keys)
        for key in keys:
            logger.warning("cache entry %s is damaged; it was removed and will be computed again", key.hex())


def _field(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part
