"""How fast stores and codecs are: ``python benchmarks/stores.py [load|raw|kill] [--json]``.

``load`` reads batches of 16 rows x (13, 128, 768) through the cache and compares with a plain copy in memory; ``raw``
puts and gets ragged values of 50 KB to 20 MB, in shards and in LMDB (if it is installed); ``kill`` kills writers of
both. The figures of docs/decisions/001-disk-store.md come from here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pac_core.cache import ActivationCache
from pac_core.contracts.backbone import BackboneInfo, Stream
from pac_core.contracts.store import Store, StoreOptions, StoreStats
from pac_core.examples import Segment
from pac_core.registry import Registry
from pac_core.testing.store_values import key_of

TAPS, ROWS, TOKENS, WIDTH = 13, 16, 128, 768
SIZES = np.geomspace(50e3, 20e6, 40).astype(int)


class LmdbStore(Store):
    """As much of LMDB as the comparison needs: every value a key of one database, views valid while open."""

    shared = True

    def __init__(self, options: StoreOptions) -> None:
        import lmdb

        self.env = lmdb.open(str(options.path), map_size=1 << 40, sync=False, max_readers=64)
        self.read: Any = None

    def put_many(self, items: Any) -> None:
        with self.env.begin(write=True) as transaction:
            for key, value in items:
                transaction.put(key, value)

    def get_many(self, keys: Any) -> list[Any]:
        self.read = self.env.begin(buffers=True)
        return [self.read.get(key) for key in keys]

    def contains_many(self, keys: Any) -> list[bool]:
        return [value is not None for value in self.get_many(keys)]

    def delete_many(self, keys: Any) -> None:
        with self.env.begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key)

    def keys(self) -> Iterator[bytes]:
        with self.env.begin() as transaction:
            return iter(list(transaction.cursor().iternext(values=False)))

    def flush(self) -> None:
        self.env.sync(True)

    def stats(self) -> StoreStats:
        return StoreStats(self.env.stat()["entries"], 0, 0)

    def close(self) -> None:
        self.read = None
        self.env.close()


_disk = Registry().get("stores", "disk")


def make_shards(path: Path) -> Store:
    return _disk(StoreOptions(path))


def make_lmdb(path: Path) -> Store:
    return LmdbStore(StoreOptions(path))


def best(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds of the fastest of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def load_speed() -> list[dict[str, Any]]:
    """MB/s of float32 activations read through the cache, for each store and dtype."""
    info = BackboneInfo(
        model_type="bert",
        hidden_size=WIDTH,
        intermediate_size=3072,
        streams=(Stream("encoder", TAPS - 1, False),),
        norm="layer",
        norm_eps=1e-12,
        activation="gelu",
        gated_mlp=False,
        vocab_size=30522,
        max_tokens=512,
        dtype=torch.float32,
        fingerprint="0" * 64,
    )
    generator = np.random.default_rng(0)
    segments = [Segment("encoder", generator.integers(0, 30000, TOKENS).astype(np.int32)) for _ in range(4 * ROWS)]
    entries = [torch.randn(TAPS, TOKENS, WIDTH) for _ in segments]
    out = torch.empty(TAPS, ROWS * TOKENS, WIDTH)
    whole = torch.randn_like(out)
    rows = [{"store": "plain copy", "dtype": "float32", "load_MB_s": out.nbytes / best(lambda: out.copy_(whole)) / 1e6}]
    for store, dtype in itertools.product(("memory", "disk", "lz4+disk"), ("float32", "bfloat16", "int8")):
        with tempfile.TemporaryDirectory() as folder, ActivationCache.open(store, folder, dtype=dtype) as cache:
            bound = cache.bind(info, {"encoder": tuple(range(TAPS))})
            keys = bound.keys(segments)
            start = time.perf_counter()
            bound.put(keys, entries)
            bound.flush()
            put = time.perf_counter() - start
            batches = itertools.cycle(range(0, len(keys), ROWS))

            def load(bound: Any = bound, keys: Any = keys, batches: Any = batches) -> None:
                first = next(batches)
                assert not bound.load(keys[first : first + ROWS], [TOKENS] * ROWS, out)[1]

            speed = out.nbytes / best(load, 12) / 1e6
            mega = sum(e.nbytes for e in entries) / put / 1e6
            ratio = sum(e.nbytes for e in entries) / cache.stats().bytes
            rows.append({"store": store, "dtype": dtype, "load_MB_s": speed, "put_MB_s": mega, "smaller": ratio})
    return rows


def raw_speed() -> list[dict[str, Any]]:
    """MB/s and sizes for ragged values, shards against LMDB: the best of three, pages in the kernel's cache."""
    found: dict[str, list[dict[str, float]]] = {"shards": [], "lmdb": []}
    for name in ("shards", "lmdb", "lmdb", "shards", "shards", "lmdb"):  # what runs first meets a colder machine
        with tempfile.TemporaryDirectory() as folder:
            found[name].append(_raw(make_shards if name == "shards" else make_lmdb, Path(folder)))
    lowest = ("resident_MB", "files_over_values", "after_deleting_half", "open_ms")
    return [
        {"store": name, **{k: (min if k in lowest else max)(run[k] for run in runs) for k in runs[0]}}
        for name, runs in found.items()
    ]


def _raw(make: Callable[[Path], Store], folder: Path) -> dict[str, float]:
    generator, order = np.random.default_rng(0), random.Random(0)
    values = [generator.bytes(int(size)) for size in SIZES]
    total, count = sum(map(len, values)) * 4, len(values) * 4
    store = make(folder)
    start = time.perf_counter()
    for n in range(count):
        store.put_many([(key_of(n), values[n % len(values)])])
        if n % 16 == 15:
            store.flush()
    store.flush()
    put = time.perf_counter() - start
    target = np.empty(SIZES.max(), dtype=np.uint8)
    numbers = list(range(count))

    def read() -> None:
        order.shuffle(numbers)
        for first in range(0, count, 8):
            for value in store.get_many([key_of(n) for n in numbers[first : first + 8]]):
                target[: len(value)] = np.frombuffer(value, dtype=np.uint8)

    before = _resident()
    get = best(read, 3)
    resident = _resident() - before
    files = sum(f.stat().st_blocks * 512 for f in folder.iterdir())
    store.close()
    opened = best(lambda: make(folder).close(), 3)
    store = make(folder)
    store.delete_many([key_of(n) for n in range(0, count, 2)])
    store.flush()
    store.compact()
    half = sum(f.stat().st_blocks * 512 for f in folder.iterdir())
    store.close()
    return {
        "put_MB_s": total / put / 1e6,
        "get_MB_s": total / get / 1e6,
        "resident_MB": resident / 1e6,
        "files_over_values": files / total,
        "after_deleting_half": half / total,
        "open_ms": opened * 1e3,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def kills(rounds: int = 40) -> list[dict[str, Any]]:
    """Kill a process that writes ragged values, many times; count what was flushed and is missing or wrong."""
    rows = []
    for name, make in (("shards", make_shards), ("lmdb", make_lmdb)):
        chance, flushed, lost, wrong = random.Random(1), 0, 0, 0
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(rounds):
                flushed = _killed(make, Path(folder), flushed, chance.uniform(0, 0.2))
                store = make(Path(folder))
                there = [n for n in range(flushed + 100) if store.contains_many([key_of(n)])[0]]
                lost += flushed - sum(n < flushed for n in there)
                wrong += sum(bytes(store.get_many([key_of(n)])[0]) != _ragged(n) for n in there)
                store.close()
        rows.append({"store": name, "rounds": rounds, "flushed": flushed, "lost": lost, "wrong": wrong})
    return rows


def _ragged(number: int) -> bytes:
    generator = np.random.default_rng(number)
    return generator.bytes(int(generator.choice(SIZES[:20])))


def _killed(make: Callable[[Path], Store], folder: Path, first: int, seconds: float) -> int:
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_write, args=(make, folder, first, send))
    process.start()
    send.close()
    receive.poll(60)
    time.sleep(seconds)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    flushed = first
    while True:
        try:
            flushed = receive.recv()
        except EOFError:
            return flushed


def _write(make: Callable[[Path], Store], folder: Path, first: int, send: Any) -> None:
    store = make(folder)
    for n in itertools.count(first):
        store.put_many([(key_of(n), _ragged(n))])
        store.flush()
        send.send(n + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("load", "raw", "kill"), default="load")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {"load": load_speed, "raw": raw_speed, "kill": kills}[arguments.what]()
    if arguments.json:
        print(json.dumps({arguments.what: rows}))
        return
    for row in rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
