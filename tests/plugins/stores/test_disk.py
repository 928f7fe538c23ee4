"""The disk store against what disks and people do to files."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pac_core.contracts.store import StoreOptions
from pac_core.errors import BadInput, StoreFull
from pac_core.stores import open_store
from pac_core.testing.store_values import KIB, MIB, holds, key_of, put
from pac_plugins.stores.disk import DiskStore
from pac_plugins.stores.shard import ALIGN, record_size

_fork = multiprocessing.get_context("fork")


def make(path: Path, shard_bytes: int = 256 * MIB, **options: object) -> DiskStore:
    return DiskStore(StoreOptions(path=path, **options), shard_bytes=shard_bytes)


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.shard"))


def present(store: DiskStore, count: int) -> list[int]:
    return [n for n in range(count) if store.contains_many([key_of(n)])[0]]


def in_child(work: Callable[..., None], *arguments: object) -> None:
    process = _fork.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def write_some(path: Path, numbers: range) -> None:
    with make(path) as store:
        put(store, *numbers, size=KIB)


# damage


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 500, 1087, 1088, 1089, 1500])
def test_a_torn_tail_is_ignored_and_overwritten(tmp_path: Path, cut: int) -> None:
    with make(tmp_path) as store:
        put(store, *range(10), size=KIB)
    (file,) = shards(tmp_path)
    os.truncate(file, file.stat().st_size - cut)
    whole = 10 - -(-cut // record_size(KIB))
    with make(tmp_path) as store:
        assert present(store, 10) == list(range(whole))
        put(store, *range(10, 14), size=KIB)
    with make(tmp_path) as store:
        assert present(store, 14) == [*range(whole), *range(10, 14)]
        assert holds(store, *present(store, 14), size=KIB)
    assert shards(tmp_path) == [file], "the shard is taken up again"


@pytest.mark.parametrize("where", [0, 8, 20, 33])  # magic, length, key, checksum
def test_a_damaged_record_header_costs_that_entry_only(tmp_path: Path, where: int) -> None:
    with make(tmp_path) as store:
        put(store, *range(10), size=KIB)
    with open(shards(tmp_path)[0], "r+b") as file:
        at = ALIGN + 4 * record_size(KIB) + where
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    with make(tmp_path) as store:
        assert present(store, 10) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert holds(store, *present(store, 10), size=KIB)
        put(store, 4, size=KIB)
    with make(tmp_path) as store:
        assert holds(store, *range(10), size=KIB)


def test_a_file_of_another_format_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "mine.shard"
    foreign.write_bytes(b"not a shard" * 100)
    with make(tmp_path) as store:
        put(store, 1)
        store.delete_many([key_of(1)])
        store.compact()
        assert store.stats().entries == 0
    assert shards(tmp_path) == [foreign]
    assert foreign.read_bytes() == b"not a shard" * 100


def test_a_file_that_was_shortened_while_open_is_damage_and_no_crash(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        put(store, *range(4), size=100 * KIB)
        assert holds(store, *range(4), size=100 * KIB)
        os.truncate(shards(tmp_path)[0], 150 * KIB)
        found = store.get_many([key_of(n) for n in range(4)])
        assert [len(value or b"") for value in found] == [100 * KIB, 0, 0, 0]


def test_payloads_that_are_mapped_are_aligned_for_vector_units(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        for n, more in enumerate((1, 100, 64, 4097)):
            put(store, n, size=256 * KIB + more)
        for value in store.get_many([key_of(n) for n in range(4)]):
            assert np.frombuffer(value, dtype=np.uint8).ctypes.data % 64 == 0


# room


def test_shards_are_capped_and_larger_entries_get_their_own(tmp_path: Path) -> None:
    with make(tmp_path, shard_bytes=64 * KIB) as store:
        put(store, *range(20), size=10 * KIB)
        put(store, 20, size=300 * KIB)
        put(store, *range(21, 30), size=10 * KIB)
        assert holds(store, *range(20), *range(21, 30), size=10 * KIB)
        assert holds(store, 20, size=300 * KIB)
    sizes = [file.stat().st_size for file in shards(tmp_path)]
    assert max(sizes) < 301 * KIB
    assert sorted(sizes)[-2] <= 64 * KIB


def test_reopening_takes_up_the_last_shard(tmp_path: Path) -> None:
    for n in range(5):
        with make(tmp_path) as store:
            put(store, n, size=KIB)
    assert len(shards(tmp_path)) == 1


def test_memory_stays_bounded_while_a_large_store_is_read(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from pac_core.stores import open_store
from pac_core.testing.store_values import key_of
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * {resource.getpagesize()}
with open_store("disk", {str(tmp_path)!r}) as store:
    before, most = resident(), 0
    for start in range(0, 150, 5):
        total = sum(bytes(v).count(0) for v in store.get_many([key_of(n) for n in range(start, start + 5)]))
        most = max(most, resident())
    print(most - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc to read the resident memory from")
    with make(tmp_path) as store:
        put(store, *range(150), size=MIB)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * MIB, "three calls of 5 MiB, and some slack, out of 150 MiB"


def test_eviction_remembers_use_from_earlier_runs(tmp_path: Path) -> None:
    with make(tmp_path, budget_bytes=MIB, when_full="evict") as store:
        put(store, *range(10), size=80 * KIB)
    time.sleep(0.05)
    with make(tmp_path, budget_bytes=MIB, when_full="evict") as store:
        assert holds(store, 0, 1, size=80 * KIB)
    with make(tmp_path, budget_bytes=MIB, when_full="evict") as store:
        put(store, *range(10, 17), size=80 * KIB)
        assert holds(store, 0, 1, *range(10, 17), size=80 * KIB)
        assert not store.contains_many([key_of(2)])[0]


def test_the_budget_counts_files_and_deleted_entries_make_room(tmp_path: Path) -> None:
    with make(tmp_path, budget_bytes=MIB) as store:
        with pytest.raises(StoreFull, match="budget_bytes is 1,048,576"):
            put(store, *range(100), size=20 * KIB)
        assert sum(f.stat().st_size for f in shards(tmp_path)) <= MIB
        held = present(store, 100)
        assert holds(store, *held, size=20 * KIB)
        store.delete_many([key_of(n) for n in held[: len(held) // 2]])
        put(store, *range(200, 215), size=20 * KIB)
        assert holds(store, *range(200, 215), *held[len(held) // 2 :], size=20 * KIB)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.parametrize("store_name", ["disk", "lz4+disk"])
def test_a_full_disk_is_a_clear_error_and_the_store_stays_whole(small_disk: Path, store_name: str) -> None:
    kept: list[int] = []
    with open_store(store_name, small_disk) as store:
        with pytest.raises(StoreFull, match=r"no room on the disk of .*small.*bytes free.*--cache-dir"):
            fill(store, kept)
        assert len(kept) >= 10
        assert holds(store, *kept, size=600 * KIB)
        assert store.stats().entries == len(kept)
    with open_store(store_name, small_disk) as store:
        assert holds(store, *kept, size=600 * KIB)
        assert store.stats().entries == len(kept)


def fill(store: DiskStore, kept: list[int]) -> None:
    for n in range(100):
        put(store, n, size=600 * KIB)
        kept.append(n)


def test_a_file_size_limit_is_a_clear_error_and_the_tail_is_cut(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        kept: list[int] = []
        with make(tmp_path) as store:
            with pytest.raises(StoreFull, match="no room"):
                fill(store, kept)
            assert kept == [0]
            assert shards(tmp_path)[0].stat().st_size == ALIGN + record_size(600 * KIB)
            put(store, 50, size=100 * KIB)

    in_child(work)
    with make(tmp_path) as store:
        assert holds(store, 0, size=600 * KIB)
        assert holds(store, 50, size=100 * KIB)
        assert store.stats().entries == 2


def test_a_folder_that_cannot_be_used_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot use .*file"):
        make(tmp_path / "file")
    with pytest.raises(BadInput, match="--cache-dir"):
        open_store("disk")


def test_compacting_leaves_nothing_dead_and_few_shards(tmp_path: Path) -> None:
    with make(tmp_path, shard_bytes=32 * KIB) as store:
        put(store, *range(100), size=3 * KIB)
        store.delete_many([key_of(n) for n in range(100) if n % 5])
        before = store.details()
        freed = store.compact()
        after = store.details()
        assert after["dead_bytes"] == 0
        assert before["file_bytes"] - after["file_bytes"] == freed
        assert after["shards"] <= 3
        assert holds(store, *range(0, 100, 5), size=3 * KIB)


# several processes


def test_a_forked_child_writes_to_a_shard_of_its_own(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        put(store, 0, size=KIB)

        def work() -> None:
            put(store, 1, size=KIB)
            store.flush()

        in_child(work)
        put(store, 2, size=KIB)
        store.refresh()
        assert holds(store, 0, 1, 2, size=KIB)
    assert len(shards(tmp_path)) == 2


def test_compacting_and_evicting_leave_a_shard_that_is_being_written(tmp_path: Path) -> None:
    with make(tmp_path) as writer:
        put(writer, *range(10), size=KIB)
        with make(tmp_path) as other:
            other.delete_many([key_of(n) for n in range(5)])
            assert other.compact() == 0
        put(writer, *range(10, 20), size=KIB)
    with make(tmp_path) as store:
        assert present(store, 20) == list(range(5, 20))
        assert store.compact() > 0
        assert holds(store, *range(5, 20), size=KIB)


def test_a_reader_follows_a_compaction_by_another_process(tmp_path: Path) -> None:
    with make(tmp_path, shard_bytes=16 * KIB) as store:
        put(store, *range(100), size=KIB)
    with make(tmp_path) as reader:

        def work() -> None:
            with make(tmp_path) as other:
                other.delete_many([key_of(n) for n in range(0, 100, 2)])
                other.compact()

        in_child(work)
        assert holds(reader, *range(1, 100, 2), size=KIB)


def test_a_kill_during_compaction_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(3)
    for round_ in range(12):
        first = round_ * 100
        with make(tmp_path, shard_bytes=64 * KIB) as store:
            put(store, *range(first, first + 100), size=4 * KIB)
        process = _fork.Process(target=compact_for_ever, args=(tmp_path, first))
        process.start()
        time.sleep(chance.uniform(0.005, 0.1))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        with make(tmp_path, shard_bytes=64 * KIB) as store:
            for start in range(0, first + 100, 100):
                assert holds(store, *range(start + 50, start + 100), size=4 * KIB)


def compact_for_ever(path: Path, first: int) -> None:
    with make(path, shard_bytes=64 * KIB) as store:
        for n in range(first, first + 50):
            store.delete_many([key_of(n)])
            store.compact()


def test_each_of_two_deleted_copies_stays_deleted(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        put(store, 0, size=KIB)
        with make(tmp_path) as other:
            in_child(write_some, tmp_path, range(1, 2))
            put(store, 2, 3, size=KIB)
            put(other, 2, 3, size=KIB)  # neither knows of the other's
        store.refresh()
        assert store.stats().entries == 4
        store.delete_many([key_of(2)])
    with make(tmp_path) as store:
        assert present(store, 4) == [0, 1, 3]


def test_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        put(store, 1, 2, size=KIB)
    mounted = tmp_path.parent / "read-only"
    if os.geteuid() == 0:
        mounted.mkdir()
        if subprocess.run(["mount", "--bind", tmp_path, mounted], capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        subprocess.run(["mount", "-o", "remount,ro,bind", mounted], check=True)
    else:
        mounted = tmp_path
        for path in (*shards(tmp_path), tmp_path):
            path.chmod(0o555)
    try:
        with make(mounted) as store:
            assert holds(store, 1, 2, size=KIB)
            store.delete_many([key_of(1)])
            assert store.get_many([key_of(1)]) == [None]
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", mounted], check=True)
