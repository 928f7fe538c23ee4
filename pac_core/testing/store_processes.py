"""What stores that outlive their process must do: reopening, several processes, kills."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from abc import abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from pac_core.contracts.store import Store
from pac_core.testing.store_values import KIB, holds, key_of, put


class SharedStoreTests:
    """The part of `pac_core.testing.StoreSuite` for stores with ``shared``; skipped for others.

    Attributes:
        kill_rounds: how often a writing process is killed.
    """

    kill_rounds = 6

    @abstractmethod
    def make_store(self, tmp_path: Path, **options: Any) -> Store:
        """See `pac_core.testing.StoreSuite.make_store`."""

    @pytest.fixture
    def shared_path(self, tmp_path: Path) -> Path:
        """A folder for stores that outlive their process; skips for others."""
        with self.make_store(tmp_path) as store:
            if not store.shared:
                pytest.skip("the store is not shared: its entries end with its process")
        return tmp_path

    def test_entries_and_deletions_outlive_the_store(self, shared_path: Path) -> None:
        with self.make_store(shared_path) as store:
            put(store, *range(10))
            store.delete_many([key_of(3)])
            before = store.stats()
        with self.make_store(shared_path) as store:
            assert holds(store, 0, 1, 2, 4, 5, 6, 7, 8, 9)
            assert store.get_many([key_of(3)]) == [None]
            assert store.stats() == before

    def test_compacting_keeps_entries_and_gives_back_room(self, shared_path: Path) -> None:
        with self.make_store(shared_path) as store:
            put(store, *range(20), size=50 * KIB)
            store.delete_many([key_of(n) for n in range(0, 20, 2)])
            store.flush()
            before = _folder_bytes(shared_path)
            freed = store.compact()
            assert holds(store, *range(1, 20, 2), size=50 * KIB)
            assert freed == 0 or _folder_bytes(shared_path) < before
        with self.make_store(shared_path) as store:
            assert holds(store, *range(1, 20, 2), size=50 * KIB)
            assert store.stats().entries == 10

    def test_another_process_sees_entries_after_flush_and_refresh(self, shared_path: Path) -> None:
        with self.make_store(shared_path) as reader:
            put(reader, 0)
            _in_process(self._put_some, shared_path, range(1, 8))
            reader.refresh()
            assert holds(reader, *range(8))
            _in_process(self._put_some, shared_path, range(8, 12))
            reader.refresh()
            assert holds(reader, *range(12))

    def test_processes_may_write_at_once(self, shared_path: Path) -> None:
        writers = [_start(self._put_some, shared_path, range(n * 10, n * 10 + 15)) for n in range(3)]  # they overlap
        for process in writers:
            _finish(process)
        with self.make_store(shared_path) as store:
            assert holds(store, *range(35))
            assert store.stats().entries == 35
            store.delete_many([key_of(n) for n in range(35)])
        with self.make_store(shared_path) as store:
            assert store.stats().entries == 0

    def test_several_processes_read_while_one_writes(self, shared_path: Path) -> None:
        readers = [_start(self._read_until_complete, shared_path, 40) for _ in range(2)]
        with self.make_store(shared_path) as store:
            for n in range(40):
                put(store, n)
                if n % 4 == 3:
                    store.flush()
        for process in readers:
            _finish(process)

    def test_a_kill_leaves_entries_whole_or_absent(self, shared_path: Path) -> None:
        flushed, chance = 0, random.Random(0)
        for _ in range(self.kill_rounds):
            flushed = _write_until_killed(self._write_on, shared_path, flushed, chance.uniform(0.0, 0.15))
            with self.make_store(shared_path) as store:
                assert holds(store, *range(flushed)), "flushed entries are there"
                numbers = {key_of(n): n for n in range(flushed + 1000)}
                present = [numbers[key] for key in sorted(store.keys())]
                assert holds(store, *present), "no entry is half there"
        assert flushed > 0, "the writer got to flush something"

    def _put_some(self, path: Path, numbers: range) -> None:
        with self.make_store(path) as store:
            put(store, *numbers)

    def _read_until_complete(self, path: Path, count: int) -> None:
        deadline = time.monotonic() + 60
        with self.make_store(path) as store:
            seen: list[int] = []
            while len(seen) < count:
                assert time.monotonic() < deadline, f"only {len(seen)} of {count} entries were seen"
                store.refresh()
                seen = [n for n in range(count) if store.contains_many([key_of(n)])[0]]
                assert holds(store, *seen)

    def _write_on(self, path: Path, first: int, report: Connection) -> None:
        """Write entries from ``first`` on for ever, reporting how many are flushed."""
        with self.make_store(path) as store:
            for n in itertools.count(first):
                put(store, n)
                if n % 3 == 2:
                    store.flush()
                    report.send(n + 1)


_fork = multiprocessing.get_context("fork")  # so that a test class need not be importable in the child


def _folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _start(work: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = _fork.Process(target=work, args=arguments)
    process.start()
    return process


def _finish(process: multiprocessing.process.BaseProcess) -> None:
    process.join(90)
    assert process.exitcode == 0, "the other process failed; its traceback is on stderr"


def _in_process(work: Callable[..., None], *arguments: object) -> None:
    _finish(_start(work, *arguments))


def _write_until_killed(write: Callable[..., None], path: Path, first: int, seconds: float) -> int:
    """Let a process write and kill it some time after its first flush; returns how many entries it had flushed."""
    receive, send = _fork.Pipe(duplex=False)
    process = _start(write, path, first, send)
    send.close()
    flushed = first
    with receive:
        if receive.poll(60):
            flushed = receive.recv()
        time.sleep(seconds)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while True:
            try:
                flushed = receive.recv()
            except EOFError:
                return flushed
