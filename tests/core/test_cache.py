"""The activation cache: keys, folders, and damaged entries."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pac_core
from pac_core.cache import ActivationCache, BoundCache, cache_folder, default_cache_root
from pac_core.contracts.backbone import BackboneInfo, Stream
from pac_core.errors import BadInput, StoreFull
from pac_core.examples import Segment

INFO = BackboneInfo(
    model_type="bert",
    hidden_size=24,
    intermediate_size=64,
    streams=(Stream("encoder", 2, False),),
    norm="layer",
    norm_eps=1e-12,
    activation="gelu",
    gated_mlp=False,
    vocab_size=99,
    max_tokens=64,
    dtype=torch.float32,
    fingerprint="ab" * 32,
)
TAPS = {"encoder": (0, 1, 2)}
STORES = ("memory", "disk", "lz4+memory", "lz4+disk")


def segment(
    *ids: int, stream: str = "encoder", types: list[int] | None = None, context: Segment | None = None
) -> Segment:
    token_types = None if types is None else np.array(types, dtype=np.int8)
    return Segment(stream, np.array(ids, dtype=np.int32), token_types, context)


def activations(tokens: int, seed: int = 0, taps: int = 3, d: int = 24) -> Tensor:
    return torch.randn(taps, tokens, d, generator=torch.Generator().manual_seed(seed))


SEGMENTS = [segment(1, 2, 3), segment(4), segment(5, 6, 7, 8, 9, 10), segment(11, 12)]
ENTRIES = [activations(len(s), n) for n, s in enumerate(SEGMENTS)]
LENGTHS = [len(s) for s in SEGMENTS]


def bound_keys(
    info: BackboneInfo = INFO, taps: dict[str, tuple[int, ...]] = TAPS, dtype: str = "bfloat16"
) -> list[bytes]:
    with ActivationCache.open(dtype=dtype) as cache:
        return cache.bind(info, taps).keys(SEGMENTS)


def filled(cache: ActivationCache, info: BackboneInfo = INFO) -> tuple[BoundCache, list[bytes]]:
    bound = cache.bind(info, TAPS, model="some/model")
    keys = bound.keys(SEGMENTS)
    bound.put(keys, ENTRIES)
    return bound, keys


# keys


def test_a_key_depends_on_everything_that_the_taps_depend_on() -> None:
    with ActivationCache.open() as cache:
        bound = cache.bind(replace(INFO, streams=(Stream("encoder", 2, False), Stream("decoder", 2, True, True))), {
            "encoder": (0, 1), "decoder": (0, 1),
        })  # fmt: skip
        source, other = segment(1, 2), segment(1, 3)
        segments = [
            source,
            other,
            segment(2, 1),
            segment(1, 2, 0),
            segment(1, 2, types=[0, 0]),
            segment(1, 2, types=[0, 1]),
            segment(1, 2, stream="decoder"),
            segment(1, 2, stream="decoder", context=source),
            segment(1, 2, stream="decoder", context=other),
            segment(1, 2, stream="decoder", context=segment(1, 2, types=[0, 0])),
            segment(513),  # the bytes of (1, 2) as one number of two bytes
            segment(),
        ]
        keys = bound.keys(segments)
    assert len(set(keys)) == len(segments)
    assert {len(key) for key in keys} == {16}


def test_keys_depend_on_backbone_taps_and_dtype() -> None:
    variants = [
        bound_keys(),
        bound_keys(replace(INFO, fingerprint="ac" * 32)),
        bound_keys(taps={"encoder": (0, 2)}),
        bound_keys(dtype="float32"),
        bound_keys(dtype="int8"),
    ]
    assert len({key for keys in variants for key in keys}) == 5 * len(SEGMENTS)


def test_keys_do_not_depend_on_batch_order_or_integer_type() -> None:
    with ActivationCache.open() as cache:
        bound = cache.bind(INFO, TAPS)
        keys = bound.keys(SEGMENTS)
        assert bound.keys(SEGMENTS[::-1]) == keys[::-1]
        wide = [Segment(s.stream, s.input_ids.astype(np.int64)) for s in SEGMENTS]  # type: ignore[arg-type]
        assert bound.keys(wide) == keys
        strided = [Segment(s.stream, np.repeat(s.input_ids, 2)[::2]) for s in SEGMENTS]
        assert bound.keys(strided) == keys


def test_keys_are_the_same_in_every_version() -> None:
    """Caches outlive versions of this code."""
    assert bound_keys()[0].hex() == "8f9eb0c86a3ffeda201e7eebf8ae26e9"


# reading and writing


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 0.0), ("float64", 0.0), ("bfloat16", 2**-8), ("int8", 1 / 254)]
)
def test_a_ragged_batch_comes_back(tmp_path: Path, store: str, dtype: str, bound: float) -> None:
    with ActivationCache.open(store, tmp_path, dtype=dtype) as cache:
        part, keys = filled(cache)
        order = [2, 0, 3, 1, 0]
        values, missing = part.load([keys[i] for i in order], [LENGTHS[i] for i in order])
        expected = torch.cat([ENTRIES[i] for i in order], dim=1)
        assert missing == []
        assert (values.dtype, values.shape) == (torch.float32, expected.shape)
        assert (values - expected).abs().max() <= bound * expected.abs().max() * 1.001
        assert torch.equal(values, torch.cat([part.as_read(ENTRIES[i]) for i in order], dim=1))
        assert part.counters.hits == 5


def test_a_float64_backbone_is_exact_in_float64(tmp_path: Path) -> None:
    entry = torch.randn(3, 5, 24, dtype=torch.float64)
    with ActivationCache.open("disk", tmp_path, dtype="float64") as cache:
        bound = cache.bind(replace(INFO, dtype=torch.float64), TAPS)
        bound.put(bound.keys([segment(1)]), [entry])
        values, _ = bound.load(bound.keys([segment(1)]), [5])
        assert torch.equal(values, entry)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_values_do_not_depend_on_the_batch(dtype: str) -> None:
    with ActivationCache.open(dtype=dtype) as cache:
        bound, keys = filled(cache)
        together, _ = bound.load(keys, LENGTHS)
        apart = [bound.load([key], [length])[0] for key, length in zip(keys, LENGTHS)]
        assert torch.equal(together, torch.cat(apart, dim=1))


def test_missing_entries_are_named_and_the_others_are_in_place() -> None:
    with ActivationCache.open(dtype="float32") as cache:
        bound, keys = filled(cache)
        absent = bound.keys([segment(50, 51)])
        assert bound.contains([keys[0], *absent]) == [True, False]
        values, missing = bound.load([keys[0], *absent, keys[1]], [3, 2, 1])
        assert missing == [1]
        assert torch.equal(values[:, :3], ENTRIES[0])
        assert torch.equal(values[:, 5:], ENTRIES[1])
        assert (bound.counters.hits, bound.counters.misses, bound.counters.damaged) == (2, 1, 0)


def test_an_empty_batch_is_an_empty_tensor() -> None:
    with ActivationCache.open() as cache:
        values, missing = cache.bind(INFO, TAPS).load([], [])
        assert (values.shape, missing) == ((3, 0, 24), [])


def test_out_is_filled_and_checked() -> None:
    with ActivationCache.open(dtype="float32") as cache:
        bound, keys = filled(cache)
        out = torch.empty(3, sum(LENGTHS), 24)
        values, _ = bound.load(keys, LENGTHS, out)
        assert values is out
        assert torch.equal(out, torch.cat(ENTRIES, dim=1))
        for wrong in (out[:, 1:], out.double(), torch.empty(24, sum(LENGTHS), 3).permute(2, 1, 0)):
            with pytest.raises(ValueError, match="out is"):
                bound.load(keys, LENGTHS, wrong)


def test_loaded_values_may_be_changed_by_the_caller() -> None:
    with ActivationCache.open(dtype="float32") as cache:
        bound, keys = filled(cache)
        bound.load(keys, LENGTHS)[0].zero_()
        assert torch.equal(bound.load(keys, LENGTHS)[0], torch.cat(ENTRIES, dim=1))


def test_wrong_shapes_are_refused() -> None:
    with ActivationCache.open() as cache:
        bound, keys = filled(cache)
        fresh = bound.keys([segment(77)])
        for entry in (torch.zeros(2, 1, 24), torch.zeros(3, 1, 23), torch.zeros(3, 24)):
            with pytest.raises(ValueError, match="entry of shape"):
                bound.put(fresh, [entry])
        with pytest.raises(ValueError, match="1 keys for 2 entries"):
            bound.put(fresh, [torch.zeros(3, 1, 24)] * 2)
        with pytest.raises(ValueError, match="zip"):
            bound.load(keys, LENGTHS[:-1])


def test_streams_may_have_different_numbers_of_taps() -> None:
    info = replace(INFO, streams=(Stream("encoder", 2, False), Stream("decoder", 4, True, True)))
    with ActivationCache.open(dtype="float32") as cache:
        bound = cache.bind(info, {"encoder": (2,), "decoder": (0, 2, 4)})
        source, target = segment(1, 2), segment(3, stream="decoder", context=segment(1, 2))
        (encoder,), (decoder,) = bound.keys([source]), bound.keys([target])
        assert [bound.load([key], [n])[0].shape[0] for key, n in ((encoder, 2), (decoder, 1))] == [1, 3]
        bound.put([encoder, decoder], [activations(2, 1, taps=1), activations(1, 2)])
        assert torch.equal(bound.load([encoder], [2])[0], activations(2, 1, taps=1))
        assert torch.equal(bound.load([decoder], [1])[0], activations(1, 2))


# damage


@pytest.mark.parametrize("store", ["disk", "lz4+disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_bit_flipped_anywhere_on_disk_is_noticed_and_never_used(
    tmp_path: Path, store: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ActivationCache.open(store, tmp_path, dtype=dtype) as cache:
        part, keys = filled(cache)
        good, _ = part.load(keys, LENGTHS)
    (shard,) = tmp_path.glob("*.shard")
    size = shard.stat().st_size
    generator = np.random.default_rng(0)
    for where in generator.integers(64, size, 60).tolist():
        flip(shard, where)
        with ActivationCache.open(store, tmp_path, dtype=dtype) as cache:
            part = cache.bind(INFO, TAPS, model="some/model")
            caplog.clear()
            values, missing = part.load(keys, LENGTHS)
            right = torch.split(good, LENGTHS, dim=1)
            for i, slot in enumerate(torch.split(values, LENGTHS, dim=1)):
                assert i in missing or torch.equal(slot, right[i])
            assert part.counters.damaged == sum("is damaged" in r.message for r in caplog.records)
            assert part.counters.hits + len(missing) == len(keys)
            part.put(keys, ENTRIES)
            again, still = part.load(keys, LENGTHS)
            assert still == []
            assert torch.equal(again, good)
        shard = max(tmp_path.glob("*.shard"), key=lambda path: path.stat().st_size)


def flip(path: Path, where: int) -> None:
    with open(path, "r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 4]))


def test_a_damaged_entry_is_deleted_counted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ActivationCache.open("disk", tmp_path) as cache:
        bound, keys = filled(cache)
        cache.flush()
        flip(next(tmp_path.glob("*.shard")), 64 + 64 + 64 + 10)
        with caplog.at_level(logging.WARNING, "pac.cache"):
            assert bound.load(keys, LENGTHS)[1] == [0]
            assert bound.load(keys, LENGTHS)[1] == [0]
        assert (bound.counters.damaged, bound.counters.misses, bound.counters.hits) == (1, 1, 6)
        assert [r.message for r in caplog.records if keys[0].hex() in r.message] == [
            f"cache entry {keys[0].hex()} is damaged; it was removed and will be computed again"
        ]
        assert bound.contains(keys) == [False, True, True, True]


# folders


def test_entries_are_found_by_the_next_run(tmp_path: Path) -> None:
    with ActivationCache.open("disk", tmp_path / "new" / "folder") as cache:
        filled(cache)
    with ActivationCache.open("disk", tmp_path / "new" / "folder") as cache:
        bound = cache.bind(INFO, TAPS, model="some/model")
        assert all(bound.contains(bound.keys(SEGMENTS)))
        assert cache.stats().entries == 4


def test_dtypes_and_tap_sets_of_one_backbone_share_a_folder_without_mixing(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        with ActivationCache.open("disk", tmp_path, dtype=dtype) as cache:
            filled(cache)
    with ActivationCache.open("disk", tmp_path, dtype="float32") as cache:
        exact, keys = filled(cache)
        assert torch.equal(exact.load(keys, LENGTHS)[0], torch.cat(ENTRIES, dim=1))
        other = cache.bind(INFO, {"encoder": (0, 2)}, model="some/model")
        assert not any(other.contains(other.keys(SEGMENTS)))
        assert cache.stats().entries == 8


def test_a_folder_of_another_backbone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with ActivationCache.open("disk", tmp_path) as cache:
        filled(cache)
    other = replace(INFO, fingerprint="cd" * 32)
    with ActivationCache.open("disk", tmp_path) as cache, pytest.raises(BadInput) as raised:
        cache.bind(other, TAPS, model="other/model")
    text = str(raised.value)
    for part in (str(tmp_path), "some/model", "abababababab", "other/model", "cdcdcdcdcdcd", "--cache-dir",
                 "pac cache clear", "share=True"):  # fmt: skip
        assert part in text
    with ActivationCache.open("disk", tmp_path, share=True) as cache:
        bound = cache.bind(other, TAPS, model="other/model")
        assert not any(bound.contains(bound.keys(SEGMENTS))), "a changed checkpoint never hits"
        filled(cache)


def test_an_emptied_folder_takes_another_backbone(tmp_path: Path) -> None:
    with ActivationCache.open("disk", tmp_path) as cache:
        _, keys = filled(cache)
        cache.store.delete_many(keys)
    with ActivationCache.open("lz4+disk", tmp_path) as cache:
        filled(cache, replace(INFO, fingerprint="cd" * 32))
        assert cache.stats().entries == 4


def test_a_folder_of_another_store_is_refused(tmp_path: Path) -> None:
    with ActivationCache.open("lz4+disk", tmp_path) as cache:
        filled(cache)
    with pytest.raises(BadInput, match=r"written with store 'lz4\+disk', not 'disk'"):
        ActivationCache.open("disk", tmp_path)
    with ActivationCache.open("lz4", tmp_path) as cache:
        assert cache.stats().entries == 4


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "store": 5, "namespaces": {}}', "\0\xff",
             '{"format": 1, "store": "disk", "namespaces": {"aa": {"taps": 3}}}', '{"format": 99}'],
)  # fmt: skip
def test_a_damaged_manifest_is_bad_input(tmp_path: Path, text: str) -> None:
    with ActivationCache.open("disk", tmp_path) as cache:
        filled(cache)
    (tmp_path / "cache.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadInput, match=r"cache\.json.*--cache-dir"):
        ActivationCache.open("disk", tmp_path)


def test_a_lost_manifest_is_bad_input(tmp_path: Path) -> None:
    with ActivationCache.open("disk", tmp_path) as cache:
        filled(cache)
    (tmp_path / "cache.json").unlink()
    with pytest.raises(BadInput, match=r"no cache\.json"):
        ActivationCache.open("disk", tmp_path)


def test_a_full_cache_says_so_and_stays_usable() -> None:
    with ActivationCache.open("memory", budget_bytes=1000, dtype="float32") as cache:
        bound = cache.bind(INFO, TAPS)
        keys = bound.keys(SEGMENTS)
        with pytest.raises(StoreFull, match="budget_bytes is 1,000"):
            bound.put(keys, ENTRIES)
        assert bound.load(keys[:1], LENGTHS[:1])[1] == []
        assert bound.contains(keys) == [True, False, False, False]


def test_unknown_dtype_and_missing_folder_are_bad_input() -> None:
    with pytest.raises(BadInput, match="cache dtype 'half'"):
        ActivationCache.open(dtype="half")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs a folder"):
        ActivationCache.open("disk")


def test_the_default_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PAC_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_root() == Path.home() / ".cache" / "pac"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / "pac"
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache_root() == tmp_path / "own"
    assert cache_folder(INFO, "org/My model") == tmp_path / "own" / "My-model-abababababab"
    assert cache_folder(INFO, "/models/../x/", tmp_path) == tmp_path / "x-abababababab"
    assert cache_folder(INFO, "..", tmp_path) == tmp_path / "bert-abababababab"


def test_the_public_name_is_exported() -> None:
    assert pac_core.ActivationCache is ActivationCache


def test_a_read_only_folder_serves_a_known_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ActivationCache.open("disk", tmp_path) as cache:
        filled(cache)
    before = sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir())

    def refuse(*arguments: object) -> int:
        raise OSError(30, "Read-only file system")

    with ActivationCache.open("disk", tmp_path) as cache:
        monkeypatch.setattr(os, "utime", refuse)
        monkeypatch.setattr("pac_core.cache.write_manifest", refuse)
        monkeypatch.setattr("pac_core.cache.manifest_lock", refuse)
        bound = cache.bind(INFO, TAPS, model="some/model")
        assert bound.load(bound.keys(SEGMENTS), LENGTHS)[1] == []
    assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == before
