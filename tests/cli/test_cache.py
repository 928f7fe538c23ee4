"""``pac cache`` on real caches."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pac_core.cache import ActivationCache
from pac_core.cli.cache import parse_age, parse_size
from pac_core.contracts.backbone import BackboneInfo, Stream
from pac_core.errors import BadInput
from pac_core.examples import Segment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(pac: Any) -> Run:
    """Runs ``pac cache ...``; returns exit code, stdout and stderr."""

    def call(*arguments: object, answer: str = "") -> tuple[int, str, str]:
        ended = pac("cache", *arguments, stdin=answer)
        return ended.code, ended.out, ended.err

    return call


def make_cache(folder: Path, model: str, *, entries: int = 6, store: str = "disk", dtype: str = "bfloat16") -> None:
    info = BackboneInfo(
        "bert", 48, 64, (Stream("encoder", 2, False),), "layer", 1e-12, "gelu", False, 99, 64, torch.float32, model * 8
    )
    with ActivationCache.open(store, folder, dtype=dtype) as cache:
        bound = cache.bind(info, {"encoder": (0, 1, 2)}, model=model)
        segments = [Segment("encoder", np.arange(n, n + 20, dtype=np.int32)) for n in range(entries)]
        bound.put(bound.keys(segments), [torch.randn(3, 20, 48) for _ in segments])


def damage_one_entry(folder: Path) -> None:
    shard = next(folder.glob("*.shard"))
    with open(shard, "r+b") as file:
        file.seek(64 + 64 + 64 + 100)  # file header, record header, entry header: inside the first payload
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_list_shows_each_cache_below_a_folder(run: Run, tmp_path: Path) -> None:
    make_cache(tmp_path / "a", "model-a")
    make_cache(tmp_path / "b", "model-b", entries=2, dtype="float32", store="lz4+disk")
    code, out, _ = run("list", "--cache-dir", tmp_path, "--json")
    caches = json.loads(out)["caches"]
    assert code == 0
    assert [(c["models"], c["dtypes"], c["entries"]) for c in caches] == [
        (["model-a"], ["bfloat16"], 6),
        (["model-b"], ["float32"], 2),
    ]
    assert caches[0]["bytes"] == sum(f.stat().st_size for f in (tmp_path / "a").glob("*.shard"))
    assert "model-a" in run("list", "--cache-dir", tmp_path)[1]


def test_list_uses_the_users_cache_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "none"))
    assert run("list", "--json")[1] == '{"caches": []}\n'
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path))
    make_cache(tmp_path / "a", "model-a")
    assert json.loads(run("list", "--json")[1])["caches"][0]["models"] == ["model-a"]


def test_list_goes_on_after_a_damaged_manifest(run: Run, tmp_path: Path) -> None:
    make_cache(tmp_path / "a", "model-a")
    make_cache(tmp_path / "b", "model-b")
    (tmp_path / "a" / "cache.json").write_text("{")
    caches = json.loads(run("list", "--cache-dir", tmp_path, "--json")[1])["caches"]
    assert "not valid JSON" in caches[0]["problem"]
    assert caches[1]["entries"] == 6


@pytest.mark.parametrize("store", ["disk", "lz4+disk"])
def test_stat_counts_by_namespace(run: Run, tmp_path: Path, store: str) -> None:
    make_cache(tmp_path, "model-a", entries=3, store=store)
    make_cache(tmp_path, "model-a", entries=2, dtype="float32", store=store)
    (cache,) = json.loads(run("stat", "--cache-dir", tmp_path, "--json")[1])["caches"]
    assert {n["dtype"]: (n["entries"], n["tokens"], n["bytes_raw"]) for n in cache["namespaces"]} == {
        "bfloat16": (3, 60, 3 * 3 * 20 * 48 * 2),
        "float32": (2, 40, 2 * 3 * 20 * 48 * 4),
    }
    assert cache["shards"] == 1
    assert cache["store"] == store
    assert "taps encoder 0-2" in run("stat", "--cache-dir", tmp_path)[1]


def test_verify_finds_and_repairs_a_flipped_bit(run: Run, tmp_path: Path) -> None:
    make_cache(tmp_path, "model-a")
    assert run("verify", "--cache-dir", tmp_path)[0] == 0
    damage_one_entry(tmp_path)
    code, out, err = run("verify", "--cache-dir", tmp_path, "--json")
    report = json.loads(out)
    assert (code, report["checked"], len(report["damaged"])) == (1, 6, 1)
    assert report["damaged"][0]["key"] in err
    assert run("verify", "--cache-dir", tmp_path, "--repair")[0] == 0
    assert json.loads(run("verify", "--cache-dir", tmp_path, "--json")[1]) == {
        "checked": 5,
        "damaged": [],
        "repaired": False,
    }


def test_prune_by_age_and_model(run: Run, tmp_path: Path) -> None:
    for name in ("old", "older", "new"):
        make_cache(tmp_path / name, f"model-{name}")
    for name, days in (("old", 40), ("older", 50)):
        then = time.time() - days * 86400
        os.utime(tmp_path / name / "cache.json", (then, then))
    freed = json.loads(
        run("prune", "--cache-dir", tmp_path, "--older-than", "30d", "--except-model", "model-older", "--json")[1]
    )
    assert names(tmp_path) == {"older", "new"}
    assert freed["freed_bytes"] > 6 * 3 * 20 * 48 * 2
    assert run("prune", "--cache-dir", tmp_path, "--except-model", "model-new")[0] == 0
    assert names(tmp_path) == {"new"}


def test_prune_by_size_takes_the_cache_used_longest_ago_and_shrinks_the_next(run: Run, tmp_path: Path) -> None:
    for age, name in enumerate(("c", "b", "a")):
        make_cache(tmp_path / name, f"model-{name}", entries=30)
        then = time.time() - age * 1000
        os.utime(tmp_path / name / "cache.json", (then, then))
    each = sum(f.stat().st_size for f in (tmp_path / "c").glob("*.shard"))
    assert run("prune", "--cache-dir", tmp_path, "--max-bytes", 2 * each)[0] == 0
    assert names(tmp_path) == {"b", "c"}
    assert run("prune", "--cache-dir", tmp_path, "--max-bytes", each * 3 // 2)[0] == 0
    left = json.loads(run("list", "--cache-dir", tmp_path, "--json")[1])["caches"]
    assert sum(cache["bytes"] for cache in left) <= each * 3 // 2
    assert left[-1]["entries"] == 30


def test_clear_asks_first(run: Run, tmp_path: Path) -> None:
    make_cache(tmp_path / "a", "model-a")
    assert run("clear", "--cache-dir", tmp_path, answer="n\n")[0] == 0
    code, _, err = run("clear", "--cache-dir", tmp_path)
    assert (code, "--yes" in err) == (2, True)
    assert names(tmp_path) == {"a"}
    assert run("clear", "--cache-dir", tmp_path, answer="y\n")[0] == 0
    assert names(tmp_path) == set()


def test_clear_keeps_files_that_are_not_the_caches(run: Run, tmp_path: Path) -> None:
    make_cache(tmp_path, "model-a")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.shard").write_bytes(b"not of this format" * 20)
    assert run("clear", "--cache-dir", tmp_path, "--yes")[0] == 0
    assert names(tmp_path) == {"notes.txt", "other.shard"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--cache-dir", "missing"], "does not exist"),
        (["verify", "--cache-dir", "."], "there is no cache in"),
        (["prune"], "say what to remove"),
        (["prune", "--max-bytes", "lots"], "is not a size"),
        (["prune", "--older-than", "soon"], "is not an age"),
    ],
)
def test_bad_values_are_one_clear_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "root"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "\n" not in err.strip()


def test_sizes_and_ages() -> None:
    assert [parse_size(t) for t in ("1000", "20GB", "1.5 GiB", "512m")] == [1000, 20 * 10**9, 3 << 29, 512 * 10**6]
    assert [parse_age(t) for t in ("30d", "12h", "2w", "90m")] == [30 * 86400, 12 * 3600, 14 * 86400, 5400]
    for text in ("", "-1", "1e9", "GB", "5 parsecs"):
        with pytest.raises(BadInput):
            parse_size(text)
        with pytest.raises(BadInput):
            parse_age(text)
