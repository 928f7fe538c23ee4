"""Store names: wrapping, defaults, and what is said when something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pac_core.contracts.store import StoreOptions
from pac_core.errors import BadInput, NeedsInnerStore, UnknownPlugin
from pac_core.registry import Registry
from pac_core.stores import open_named_store, open_store


def test_a_wrapper_alone_wraps_disk_with_a_path_else_memory(tmp_path: Path) -> None:
    name, store = open_named_store("lz4", tmp_path)
    assert (name, store.shared) == ("lz4+disk", True)
    store.close()
    name, store = open_named_store("lz4")
    assert (name, store.shared) == ("lz4+memory", False)


def test_wrappers_nest() -> None:
    with open_store("lz4+lz4+memory") as store:
        store.put_many([(b"k" * 16, b"abc" * 1000)])
        assert bytes(store.get_many([b"k" * 16])[0] or b"") == b"abc" * 1000
        assert store.stats().bytes < 500


def test_a_wrapper_says_that_it_needs_a_store() -> None:
    with pytest.raises(NeedsInnerStore):
        Registry().get("stores", "lz4")(StoreOptions())


@pytest.mark.parametrize("name", ["disk+memory", "memory+disk", "memory+lz4+memory"])
def test_a_store_that_wraps_nothing_can_only_come_last(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="wraps no other store"):
        open_store(name, tmp_path)


@pytest.mark.parametrize("name", ["dsk", "lz4+dsk", "lz4+", ""])
def test_an_unknown_name_lists_the_known(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownPlugin, match=r"installed: disk, lz4, memory"):
        open_store(name, tmp_path)


def test_without_lz4_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pac_plugins.stores.lz4", raising=False)
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(BadInput, match=r'pip install "pac-core\[lz4\]"'):
        open_store("lz4+memory")


@pytest.mark.parametrize("options", [{"budget_bytes": 0}, {"budget_bytes": -5}, {"when_full": "grow"}])
def test_bad_options_are_bad_input(options: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"budget_bytes|when_full"):
        open_store("memory", **options)
