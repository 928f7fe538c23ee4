"""Conformance suite for cache stores. Needs pytest and hypothesis."""

from __future__ import annotations

import itertools
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pac_core.contracts.store import Store
from pac_core.errors import StoreFull
from pac_core.testing.store_processes import SharedStoreTests
from pac_core.testing.store_values import KIB, MIB, holds, key_of, put, same, value_of

_SETTINGS = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # each example makes a store in a folder of its own
        HealthCheck.differing_executors,  # the suite is inherited by several classes
        HealthCheck.too_slow,
    ],
)


class StoreSuite(SharedStoreTests):
    """What every `pac_core.contracts.store.Store` must do. Subclass it in your tests and say how to make your store::

        class TestMyStore(StoreSuite):
            def make_store(self, tmp_path, **options):
                return MyStore(StoreOptions(path=tmp_path, **options))

    Tests of what only some stores can do (being shared by processes, budgets) are skipped, in words, for the others.

    Attributes:
        budgets: False for a store that has no byte budget.
        kill_rounds: how often a writing process is killed; 6 by default.
    """

    budgets = True

    @abstractmethod
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        """A store in ``tmp_path``; ``options`` are fields of `StoreOptions` other than ``path``.

        Called again with the same folder, also in another process, it opens what is there.
        """

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with self.make_store(tmp_path) as store:
            yield store

    # values

    @_SETTINGS
    @given(
        sizes=st.lists(st.one_of(st.integers(0, 200), st.integers(0, MIB)), max_size=8),
        asked=st.lists(st.integers(0, 11), max_size=20),
    )
    def test_values_come_back_whole_in_the_order_asked(
        self, tmp_path: Path, sizes: list[int], asked: list[int]
    ) -> None:
        with self.make_store(_fresh(tmp_path)) as store:
            values = {n: value_of(n, size) for n, size in enumerate(sizes)}
            store.put_many([(key_of(n), value) for n, value in values.items()])
            found = store.get_many([key_of(n) for n in asked])
            assert [None if v is None else bytes(v) for v in found] == [values.get(n) for n in asked]
            assert store.contains_many([key_of(n) for n in asked]) == [n in values for n in asked]

    def test_absent_keys_are_none(self, store: Store) -> None:
        assert store.get_many([key_of(1), key_of(2)]) == [None, None]
        assert store.contains_many([key_of(1)]) == [False]

    def test_empty_batches_are_fine(self, store: Store) -> None:
        store.put_many([])
        store.delete_many([])
        assert store.get_many([]) == []
        assert store.contains_many([]) == []

    def test_deleted_keys_are_gone_and_can_be_put_again(self, store: Store) -> None:
        put(store, 1, 2, 3)
        store.delete_many([key_of(2), key_of(9)])
        assert store.contains_many([key_of(n) for n in (1, 2, 3)]) == [True, False, True]
        assert store.get_many([key_of(2)]) == [None]
        put(store, 2)
        assert holds(store, 1, 2, 3)

    def test_putting_a_key_again_keeps_one_value(self, store: Store) -> None:
        put(store, 1, 2)
        put(store, 1, 2, 1)
        assert holds(store, 1, 2)
        assert store.stats().entries == 2

    def test_the_caller_may_reuse_its_buffers(self, store: Store) -> None:
        array = bytearray(value_of(1, 5000))
        numbers = np.frombuffer(value_of(2, 8000), dtype=np.float32).copy()
        store.put_many([(key_of(1), array), (key_of(2), numbers.data), (key_of(3), memoryview(array)[100:200])])
        array[:] = bytes(5000)
        numbers[:] = 0
        assert holds(store, 1, size=5000)
        assert holds(store, 2, size=8000)
        assert same(store.get_many([key_of(3)])[0], value_of(1, 5000)[100:200])

    def test_values_handed_out_cannot_change_the_store(self, store: Store) -> None:
        put(store, 1, size=4096)
        (value,) = store.get_many([key_of(1)])
        assert value is not None
        view = memoryview(value)
        if not view.readonly:
            view[:] = bytes(len(view))
        assert holds(store, 1, size=4096)

    def test_values_stay_valid_through_the_next_get(self, store: Store) -> None:
        put(store, *range(6))
        first = store.get_many([key_of(0), key_of(1)])
        put(store, 6)
        store.get_many([key_of(n) for n in range(2, 6)])
        assert same(first[0], value_of(0))
        assert same(first[1], value_of(1))

    # listings

    def test_keys_are_those_present_when_asked(self, store: Store) -> None:
        put(store, 1, 2, 3)
        listing = store.keys()
        put(store, 4)
        store.delete_many([key_of(3)])
        assert sorted(listing) == sorted(key_of(n) for n in (1, 2, 3))
        assert sorted(store.keys()) == sorted(key_of(n) for n in (1, 2, 4))

    def test_stats_follow_puts_and_deletes(self, store: Store) -> None:
        assert (store.stats().entries, store.stats().bytes_raw) == (0, 0)
        put(store, 1, 2, size=10_000)
        stats = store.stats()
        assert (stats.entries, stats.bytes_raw) == (2, 20_000)
        assert stats.bytes >= 20_000, "random bytes cannot be held in less"
        store.delete_many([key_of(1)])
        assert (store.stats().entries, store.stats().bytes_raw) == (1, 10_000)
        assert store.stats().bytes < stats.bytes

    def test_peek_gives_the_start_of_values(self, store: Store) -> None:
        put(store, 1, size=5000)
        put(store, 2, size=10)
        keys = [key_of(1), key_of(2), key_of(3)]
        for size in (8, 64, 300):
            found = store.peek_many(keys, size)
            assert found[2] is None
            assert same(found[0], value_of(1, 5000)[:size])
            assert same(found[1], value_of(2, 10)[:size])

    # budgets

    def test_a_full_store_says_so_and_keeps_what_it_has(self, tmp_path: Path) -> None:
        with self._with_budget(tmp_path, MIB, "error") as store:
            kept: list[int] = []
            with pytest.raises(StoreFull, match=r"budget|full|room"):
                _fill(store, kept)
            assert len(kept) >= 12, "at least half of the budget can be used"
            assert store.stats().bytes <= MIB
            assert holds(store, *kept, size=40 * KIB)
            store.delete_many([key_of(n) for n in kept[::2]])
            put(store, *range(100, 104), size=40 * KIB)
            assert holds(store, *kept[1::2], *range(100, 104), size=40 * KIB), "deleted entries make room"

    def test_eviction_keeps_to_the_budget_and_what_is_in_use(self, tmp_path: Path) -> None:
        with self._with_budget(tmp_path, MIB, "evict") as store:
            put(store, 0, size=64 * KIB)
            for n in range(1, 60):
                put(store, n, size=64 * KIB)
                assert store.stats().bytes <= MIB
                assert holds(store, n, 0, size=64 * KIB), "the newest entry and one read all the time stay"
            present = [n for n in range(60) if store.contains_many([key_of(n)])[0]]
            assert 2 <= len(present) <= 16
            assert holds(store, *present, size=64 * KIB)

    @pytest.mark.parametrize("when_full", ["error", "evict"])
    def test_a_value_larger_than_the_budget_is_refused(self, tmp_path: Path, when_full: str) -> None:
        with self._with_budget(tmp_path, 100 * KIB, when_full) as store:
            put(store, 1, size=KIB)
            with pytest.raises(StoreFull):
                put(store, 2, size=200 * KIB)
            assert store.contains_many([key_of(2)]) == [False]
            assert holds(store, 1, size=KIB)

    def _with_budget(self, tmp_path: Path, budget: int, when_full: str) -> Store:
        if not self.budgets:
            pytest.skip("the store has no byte budget")
        return self.make_store(tmp_path, budget_bytes=budget, when_full=when_full)

    # threads and closing

    def test_threads_may_put_get_and_delete_at_once(self, store: Store) -> None:
        failures: list[str] = []

        def work(thread: int) -> None:
            own = range(thread * 100, thread * 100 + 12)
            for n in own:
                put(store, n, size=20 * KIB)
                put(store, 1000 + n % 100, size=20 * KIB)
                store.delete_many([key_of(2000 + n)])
                if not holds(store, n, size=20 * KIB):
                    failures.append(f"{n} is missing or wrong")
            if not holds(store, *own, size=20 * KIB):
                failures.append(f"thread {thread} lost entries")

        _in_threads(work, 4)
        assert not failures
        assert store.stats().entries == 4 * 12 + 12

    def test_closing_twice_is_fine_and_use_afterwards_an_error(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        put(store, 1)
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: put(store, 2),
            lambda: store.get_many([key_of(1)]),
            lambda: store.contains_many([key_of(1)]),
            lambda: store.delete_many([key_of(1)]),
            lambda: list(store.keys()),
            store.flush,
            store.stats,
        ]
        for call in calls:
            with pytest.raises(ValueError, match="closed"):
                call()


_folders = itertools.count()


def _fresh(tmp_path: Path) -> Path:
    path = tmp_path / str(next(_folders))
    path.mkdir()
    return path


def _fill(store: Store, kept: list[int]) -> None:
    """Put values of 40 KiB, 2.5 MiB in all, noting those that were accepted."""
    for n in range(64):
        put(store, n, size=40 * KIB)
        kept.append(n)


def _in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
