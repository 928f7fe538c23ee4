"""Bundled cache stores: memory, disk, and lz4 around either."""

from __future__ import annotations

from pac_core.contracts.store import Store, StoreOptions
from pac_core.errors import BadInput
from pac_core.hookspecs import Register, hookimpl


def make_memory(options: StoreOptions) -> Store:
    """A `MemoryStore`; it ignores ``options.path``."""
    from pac_plugins.stores.memory import MemoryStore

    _wraps_nothing("memory", options)
    return MemoryStore(options)


def make_disk(options: StoreOptions) -> Store:
    """A `DiskStore` in the folder ``options.path``, which is made if it does not exist."""
    from pac_plugins.stores.disk import DiskStore

    _wraps_nothing("disk", options)
    return DiskStore(options)


def make_lz4(options: StoreOptions) -> Store:
    """An `Lz4Store` around ``options.inner``."""
    try:
        from pac_plugins.stores.lz4 import Lz4Store
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("lz4"):
            raise
        raise BadInput("store 'lz4' needs the package lz4: pip install \"pac-core[lz4]\"") from error
    return Lz4Store(options)


def _wraps_nothing(name: str, options: StoreOptions) -> None:
    if options.inner is not None:
        raise BadInput(f"store '{name}' wraps no other store; it can only come last, as in 'lz4+{name}'")


@hookimpl
def pac_register_stores(register: Register) -> None:
    register("memory", make_memory, summary="in this process's memory, with a byte budget")
    register(
        "disk", make_disk, summary="in append-only files that are memory-mapped; survives kills, shared by processes"
    )
    register("lz4", make_lz4, summary="compresses what another store keeps: lz4+disk, lz4+memory")
