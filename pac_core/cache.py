"""The activation cache: opening a store for it, and keeping apart what belongs to different backbones."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Literal

from pac_core.bound import BoundCache, CacheCounters
from pac_core.codecs import codec_for
from pac_core.contracts.backbone import BackboneInfo
from pac_core.contracts.store import Store, StoreStats
from pac_core.errors import BadInput
from pac_core.manifest import (
    MANIFEST,
    WAY_OUT,
    Manifest,
    Namespace,
    manifest_lock,
    read_manifest,
    write_manifest,
)
from pac_core.registry import Registry
from pac_core.stores import open_named_store

__all__ = ["ActivationCache", "BoundCache", "CacheCounters", "cache_folder", "default_cache_root", "mark_used"]

CacheDtype = Literal["float64", "float32", "bfloat16", "int8"]


def default_cache_root() -> Path:
    """Folder of all caches: ``$PAC_CACHE_DIR``, else ``$XDG_CACHE_HOME/pac``, else ``~/.cache/pac``."""
    own = os.environ.get("PAC_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "pac"


def cache_folder(info: BackboneInfo, model_name: str, root: str | Path | None = None) -> Path:
    """Folder below ``root`` for the cache of one backbone: its model's name and the start of its fingerprint."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model_name).name).strip("-.") or info.model_type
    return (default_cache_root() if root is None else Path(root)) / f"{name}-{info.fingerprint[:12]}"


class ActivationCache:
    """A store and the dtype in which activations are kept in it.

    Use as a context manager, or call `close`.

    Attributes:
        store: where entries live.
        dtype: cache dtype.
        path: folder, None for stores that keep nothing on disk.
    """

    def __init__(self, store: Store, name: str, *, dtype: str, path: Path | None, share: bool) -> None:
        self.store = store
        self.dtype = dtype
        self.path = path
        self._name = name
        self._share = share

    @classmethod
    def open(
        cls,
        store: str = "memory",
        path: str | Path | None = None,
        *,
        dtype: CacheDtype = "bfloat16",
        budget_bytes: int | None = None,
        when_full: Literal["error", "evict"] = "error",
        share: bool = False,
        registry: Registry | None = None,
    ) -> ActivationCache:
        """Open a cache; nothing is written before entries are.

        Args:
            store: name of the store, as in ``"memory"``, ``"disk"``, ``"lz4+disk"``.
            path: folder of stores on disk; holds the entries of one backbone.
            dtype: how activations are kept. ``float32`` (``float64`` for a float64 backbone) is exact.
            budget_bytes: most bytes to hold, None for no limit.
            when_full: at the budget raise `StoreFull` or drop the entries used longest ago.
            share: let several backbones share the folder.
            registry: where the store's name is looked up; by default everything installed.

        Raises:
            BadInput: unknown store or dtype, a folder that cannot be used, or one that another store wrote.
        """
        codec_for(dtype)
        name, opened = open_named_store(store, path, budget_bytes=budget_bytes, when_full=when_full, registry=registry)
        folder = Path(path).expanduser() if path is not None and opened.shared else None
        try:
            if folder is not None:
                _check_manifest(folder, name, opened)
        except BaseException:
            opened.close()
            raise
        return cls(opened, name, dtype=dtype, path=folder, share=share)

    def bind(self, info: BackboneInfo, taps: dict[str, tuple[int, ...]], *, model: str = "") -> BoundCache:
        """The part of the cache for one backbone and tap set.

        Args:
            info: describes the backbone; its fingerprint covers its weights.
            taps: tap indices of each stream whose segments are cached.
            model: the model's path or id, for listings and messages.

        Raises:
            BadInput: the folder holds entries of another backbone.
        """
        taps = {stream: tuple(indices) for stream, indices in taps.items()}
        namespace = Namespace(info.fingerprint, model, info.model_type, info.hidden_size, taps, self.dtype)
        bound = BoundCache(self.store, info, namespace)
        if self.path is not None:
            self._enter(bound.namespace_id.hex(), namespace)
        return bound

    def _enter(self, name: str, namespace: Namespace) -> None:
        """Note the namespace in the manifest, if it may share the folder."""
        assert self.path is not None
        if self._admit(name, namespace) is not None:  # else nothing is to be written: a read-only folder will do
            with manifest_lock(self.path):
                manifest = self._admit(name, namespace)
                if manifest is not None:
                    write_manifest(self.path, manifest)
        mark_used(self.path)

    def _admit(self, name: str, namespace: Namespace) -> Manifest | None:
        """The manifest with the namespace added, None if it is in it already.

        Raises:
            BadInput: the folder holds entries of another backbone.
        """
        assert self.path is not None
        manifest = _check_manifest(self.path, self._name, self.store)
        others = [n for n in manifest.namespaces.values() if n.fingerprint != namespace.fingerprint]
        if others and not self.store.stats().entries:
            manifest = Manifest(self._name, {})
        elif others and not self._share:
            raise BadInput(
                f"cache folder {self.path} holds entries of {others[0].label}, but this run's backbone is "
                f"{namespace.label}: another model, or the same in another number format (dtype); give another "
                f"--cache-dir, empty this one with 'pac cache clear --cache-dir {self.path}', or let it hold both with "
                "--set cache.share=true (share=True in Python)"
            )
        return None if manifest.namespaces.get(name) == namespace else manifest.including(name, namespace)

    def stats(self) -> StoreStats:
        """Sizes of the whole store, all namespaces together."""
        return self.store.stats()

    def flush(self) -> None:
        """Return once all entries put so far survive a kill."""
        self.store.flush()

    def close(self) -> None:
        """Flush and release the store; closing twice is fine."""
        self.store.close()

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def mark_used(folder: Path) -> None:
    """Note in the manifest's file time that the cache was used now; listings and pruning go by it."""
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST, (time.time(), time.time()))


def _check_manifest(folder: Path, store_name: str, store: Store) -> Manifest:
    """The folder's manifest, or an empty one for a folder without entries.

    Raises:
        BadInput: the manifest is damaged or missing, or the entries were written by another store.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if store.stats().entries:
            raise BadInput(f"cache folder {folder} holds entries but no {MANIFEST}; {WAY_OUT}")
        return Manifest(store_name, {})
    if manifest.store != store_name and manifest.namespaces:
        if not store.stats().entries:
            return Manifest(store_name, {})
        raise BadInput(
            f"cache folder {folder} was written with store '{manifest.store}', not '{store_name}'; give --store "
            f"{manifest.store}, or another --cache-dir"
        )
    return manifest
