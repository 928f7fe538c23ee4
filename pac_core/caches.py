"""Looking after cache folders: finding, describing, checking, pruning and clearing them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pac_core.cache import default_cache_root
from pac_core.codecs import PAYLOAD_AT, intact, read_header
from pac_core.contracts.store import Store
from pac_core.errors import BadInput
from pac_core.manifest import LOCK, MANIFEST, Manifest, Namespace, read_manifest
from pac_core.registry import Registry
from pac_core.stores import open_store

_AT_ONCE = 8


@dataclass(frozen=True)
class CacheFolder:
    """A folder with a ``cache.json``.

    Attributes:
        path: the folder.
        manifest: None if it cannot be read; ``problem`` then says why.
        used: when the cache was last bound by a run, seconds since the epoch.
    """

    path: Path
    manifest: Manifest | None
    used: float
    problem: str = ""

    @property
    def models(self) -> list[str]:
        """Names of the models it holds entries of."""
        namespaces = self.manifest.namespaces.values() if self.manifest else ()
        return sorted({n.model or n.model_type for n in namespaces})

    @property
    def dtypes(self) -> list[str]:
        """Cache dtypes in it."""
        return sorted({n.dtype for n in self.manifest.namespaces.values()}) if self.manifest else []

    def open(self, registry: Registry, *, keep_to: int | None = None) -> Store:
        """Its store; with ``keep_to`` one that evicts down to so many bytes when compacted.

        Raises:
            BadInput: the manifest cannot be read, or its store is not installed.
        """
        if self.manifest is None:
            raise BadInput(self.problem)
        return open_store(self.manifest.store, self.path, budget_bytes=keep_to, when_full="evict", registry=registry)


@dataclass(frozen=True)
class CacheSize:
    """Entries, bytes on disk, and bytes before compression."""

    entries: int
    bytes: int
    bytes_raw: int


@dataclass(frozen=True)
class NamespaceSize:
    """What a cache holds of one namespace: entries, tokens in them, and bytes of their payloads before compression."""

    namespace: Namespace
    entries: int
    tokens: int
    bytes_raw: int


def find_caches(folder: Path | None) -> list[CacheFolder]:
    """The cache in ``folder``, or those in its sub-folders; of the user's cache folder if None.

    Raises:
        BadInput: there is no such folder.
    """
    root = default_cache_root() if folder is None else folder.expanduser()
    if not root.is_dir():
        if folder is None:
            return []
        raise BadInput(f"cache folder {root} does not exist")
    if (root / MANIFEST).is_file():
        return [_look(root)]
    return [_look(child) for child in sorted(root.iterdir()) if (child / MANIFEST).is_file()]


def _look(path: Path) -> CacheFolder:
    used = (path / MANIFEST).stat().st_mtime
    try:
        return CacheFolder(path, read_manifest(path), used)
    except BadInput as error:
        return CacheFolder(path, None, used, str(error))


def size_of(store: Store) -> CacheSize:
    """Sizes of an open store."""
    stats = store.stats()
    return CacheSize(stats.entries, store.details().get("file_bytes", stats.bytes), stats.bytes_raw)


def namespace_sizes(cache: CacheFolder, store: Store) -> list[NamespaceSize]:
    """What is there of each namespace, from the headers of the entries alone."""
    names = {} if cache.manifest is None else cache.manifest.namespaces
    found = {name: [0, 0, 0] for name in names}
    keys = list(store.keys())
    for start in range(0, len(keys), 256):
        for start_of_entry in store.peek_many(keys[start : start + 256], PAYLOAD_AT):
            header = read_header(start_of_entry or b"")
            total = found.get(header.namespace.hex()) if header else None
            if header is not None and total is not None:
                total[:] = [total[0] + 1, total[1] + header.shape[1], total[2] + header.payload]
    return [NamespaceSize(names[name], *total) for name, total in found.items()]


def damaged_keys(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[bytes]:
    """Keys of the entries that are not what was written, found by reading everything.

    Args:
        store: the store to check.
        progress: told how many of how many entries are checked.
    """
    keys = list(store.keys())
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        for key, value in zip(some, store.get_many(some)):
            if value is not None and (read_header(value) is None or not intact(key, value)):
                yield key
        progress(start + len(some), len(keys))


def prune(
    caches: Sequence[CacheFolder],
    registry: Registry,
    *,
    max_bytes: int | None = None,
    older_than: float | None = None,
    except_models: Sequence[str] = (),
) -> list[tuple[CacheFolder, int]]:
    """Remove what was used longest ago; returns the caches touched with the bytes freed in each.

    Args:
        caches: what may be removed.
        registry: where stores are looked up.
        max_bytes: remove whole caches, the one used longest ago first, and shrink the last until all take no more.
        older_than: remove caches not used for so many seconds.
        except_models: keep the caches of these models, whatever else is said; with nothing else said remove the rest.
    """
    free = [c for c in caches if c.manifest and not set(c.models) & set(except_models)]
    everything = max_bytes is None and older_than is None
    limit = time.time() - (older_than or 0)
    doomed = [c for c in free if everything or (older_than is not None and c.used < limit)]
    freed = [(cache, clear(cache, registry)) for cache in doomed]
    if max_bytes is not None:
        left = [c for c in caches if c.manifest and c not in doomed]
        freed += _shrink([c for c in left if c in free], left, max_bytes, registry)
    return freed


def _shrink(
    free: list[CacheFolder], left: list[CacheFolder], max_bytes: int, registry: Registry
) -> list[tuple[CacheFolder, int]]:
    sizes = {}
    for cache in left:
        with cache.open(registry) as store:
            sizes[cache.path] = size_of(store).bytes
    freed = []
    for cache in sorted(free, key=lambda c: c.used):
        excess = sum(sizes.values()) - max_bytes
        if excess <= 0:
            break
        keep = sizes[cache.path] - excess
        freed.append((cache, clear(cache, registry) if keep <= 0 else _shrink_one(cache, keep, registry)))
        sizes[cache.path] -= freed[-1][1]
    return freed


def _shrink_one(cache: CacheFolder, keep: int, registry: Registry) -> int:
    with cache.open(registry, keep_to=keep) as store:
        return store.compact()


def clear(cache: CacheFolder, registry: Registry) -> int:
    """Remove all entries of a cache, its manifest, and its folder if nothing else is in it; returns the bytes freed.

    What another process is writing to at this moment stays, and the manifest with it.
    """
    with cache.open(registry) as store:
        before = size_of(store).bytes
        store.delete_many(list(store.keys()))
        store.compact()
        left = size_of(store).bytes
    if not left:
        (cache.path / MANIFEST).unlink(missing_ok=True)
        (cache.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            cache.path.rmdir()
    return before - left
