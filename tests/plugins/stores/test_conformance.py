"""Every bundled store passes the public suite, alone and wrapped."""

from pathlib import Path
from typing import Any

from pac_core.contracts.store import Store
from pac_core.stores import open_store
from pac_core.testing import StoreSuite


class TestMemoryStore(StoreSuite):
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        return open_store("memory", **options)


class TestDiskStore(StoreSuite):
    kill_rounds = 25

    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        return open_store("disk", tmp_path, **options)


class TestLz4AroundMemory(StoreSuite):
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        return open_store("lz4+memory", **options)


class TestLz4AroundDisk(StoreSuite):
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        return open_store("lz4+disk", tmp_path, **options)
