"""The plugin: registers the store ``zstd``."""

from __future__ import annotations

from pac_core.contracts.store import Store, StoreOptions
from pac_core.hookspecs import Register, hookimpl


def make_zstd(options: StoreOptions) -> Store:
    """A `ZstdStore` around ``options.inner``."""
    from pac_store_zstd.store import ZstdStore

    return ZstdStore(options)


@hookimpl
def pac_register_stores(register: Register) -> None:
    register("zstd", make_zstd, summary="compresses what another store keeps, smaller than lz4: zstd+disk, zstd+memory")
