"""Reading taps: from the cache, from the backbone, or some of each; whatever the batch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pac_core import taps as taps_module
from pac_core.cache import ActivationCache
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource, tap_indices
from pac_core.errors import RunFailed
from pac_core.examples import Example, Segment
from pac_core.registry import Registry
from pac_core.taps import TapReader, pad_segments, rows_of
from pac_core.testing.tiny import tiny_model

DRAWN = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


def segment(seed: int, length: int, stream: str = ENCODER, context: Segment | None = None) -> Segment:
    ids = np.random.default_rng(seed).integers(4, 64, length).astype(np.int32)
    return Segment(stream, ids, None, context)


def texts(lengths: list[int]) -> list[Example]:
    return [Example((segment(i, n),), 0) for i, n in enumerate(lengths)]


def pairs(lengths: list[tuple[int, int]]) -> list[Example]:
    return [Example((segment(i, a), segment(i + 100, b)), 0) for i, (a, b) in enumerate(lengths)]


def answers(lengths: list[tuple[int, int]]) -> list[Example]:
    found = []
    for i, (source, target) in enumerate(lengths):
        context = segment(i, source)
        found.append(Example((context, segment(i + 50, target, DECODER, context)), None))
    return found


Make = Callable[..., TapReader]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: tiny_model(family, dtype=torch.float64) for family in ("bert", "t5")}


@pytest.fixture
def reader(models: Any) -> Iterator[Make]:
    opened: list[ActivationCache] = []

    def make(family: str = "bert", store: str | None = "memory", every: int = 1, **options: Any) -> TapReader:
        backbone: Backbone = Registry().get("backbones", family)(BackboneSource(model=models[family]))
        taps = {s.name: tap_indices(s.layers, every) for s in backbone.info.streams}
        if store is None:
            return TapReader(backbone, None, taps, **options)
        opened.append(ActivationCache.open(store, dtype="float64"))
        return TapReader(backbone, opened[-1].bind(backbone.info, taps), taps, **options)

    yield make
    for cache in opened:
        cache.close()


def rows(taps: Any) -> list[torch.Tensor]:
    return list(taps.values.split(list(taps.rows.lengths), dim=1))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    known=st.sets(st.integers(0, 5)),
    per_pass=st.integers(1, 40),
)
@DRAWN
def test_a_batch_reads_the_same_however_much_of_it_is_cached(
    reader: Make, models: Any, lengths: list[int], known: set[int], per_pass: int
) -> None:
    examples = texts(lengths)
    cached = reader(tokens_per_pass=per_pass)
    first = [e for i, e in enumerate(examples) if i in known]
    if first:
        cached.read(first)
    found = cached.read(examples)[ENCODER]
    assert cached.counters.backbone_samples == len(examples)
    assert cached.counters.cache_hits == len(first)
    assert found.rows.lengths == tuple(lengths)
    for example, row in zip(examples, rows(found), strict=True):
        ids = torch.from_numpy(example.segments[0].input_ids).long()[None]
        expected = torch.cat(models["bert"].base_model(ids, output_hidden_states=True).hidden_states)
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


def test_only_the_tapped_layers_are_read(reader: Make) -> None:
    examples = texts([4, 2])
    whole, some = reader(store=None).read(examples)[ENCODER], reader(every=2).read(examples)[ENCODER]
    assert torch.equal(some.values, whole.values[[0, 2, 3]])


def test_pairs_read_apart_are_one_row_of_two_segments(reader: Make) -> None:
    made = pairs([(3, 2), (1, 4)])
    found = reader().read(made)[ENCODER]
    assert found.rows.lengths == (5, 5)
    assert found.rows.segments.tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 1, 1]
    alone = reader().read([Example((made[0].segments[1],), 0)])[ENCODER]
    torch.testing.assert_close(found.values[:, 3:5], alone.values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("store", ["memory", None])
def test_encoder_decoder_models_give_both_streams(reader: Make, models: Any, store: str | None) -> None:
    made = answers([(3, 2), (5, 4), (2, 1)])
    own = reader("t5", store)
    own.read(made[:2])
    found = own.read(made)
    assert found[ENCODER].rows.lengths == (3, 5, 2)
    assert found[DECODER].rows.lengths == (2, 4, 1)
    for i, example in enumerate(made):
        source, target = (torch.from_numpy(s.input_ids).long()[None] for s in example.segments)
        out = models["t5"](source, decoder_input_ids=target, output_hidden_states=True)
        for stream, states in ((ENCODER, out.encoder_hidden_states), (DECODER, out.decoder_hidden_states)):
            torch.testing.assert_close(rows(found[stream])[i], torch.cat(states), rtol=1e-9, atol=1e-9)


def test_filling_ahead_leaves_nothing_to_compute(reader: Make) -> None:
    own = reader()
    examples = texts([3, 9, 1, 4, 7])
    assert own.missing(examples) == [0, 1, 2, 3, 4]
    assert list(own.fill(examples, batch_size=2)) == [2, 4, 5]
    assert own.missing(examples) == []
    assert list(own.fill(examples)) == []
    own.backbone.release(keep_head=False)
    assert own.read(examples)[ENCODER].values.isfinite().all()
    assert (own.counters.backbone_samples, own.counters.cache_hits) == (5, 5)


def test_a_fill_that_was_stopped_goes_on_in_the_same_batches(reader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, ran = texts([3, 9, 1, 4, 7, 2, 8]), []
    plain = taps_module.compute_taps

    def compute(backbone: Backbone, segments: list[Segment], wanted: Any) -> Any:
        ran.append([len(segment) for segment in segments])
        return plain(backbone, segments, wanted)

    monkeypatch.setattr(taps_module, "compute_taps", compute)
    list(reader().fill(examples, batch_size=3))
    whole, ran[:] = list(ran), []
    stopped = reader()
    planned = stopped.missing(examples)
    next(stopped.fill(examples, batch_size=3))
    one = [i for i in planned if len(examples[i]) == 4]
    list(stopped.fill([examples[i] for i in one]))  # as if the kill came in the middle of the second batch
    assert len(stopped.missing(examples)) == 3
    before = len(ran)
    assert list(stopped.fill(examples, batch_size=3, planned=planned))[-1] == 7
    assert ran[:1] + ran[before:] == whole
    assert stopped.missing(examples) == []


def test_without_a_cache_everything_is_missing(reader: Make) -> None:
    own = reader(store=None)
    examples = texts([3, 2])
    for _ in range(2):
        own.read(examples)
    assert own.missing(examples) == [0, 1]
    assert own.counters.backbone_samples == 4


@pytest.mark.parametrize("fills", [True, False])
def test_a_missing_entry_of_a_released_backbone_is_told(reader: Make, fills: bool) -> None:
    own = reader()
    own.backbone.release(keep_head=False)
    with pytest.raises(RunFailed, match="2 samples are not in the cache, but the backbone has been released"):
        list(own.fill(texts([3, 2]))) if fills else own.read(texts([3, 2]))


def test_a_reader_goes_on_without_its_cache_once_closed(reader: Make) -> None:
    own = reader()
    before = own.read(texts([3, 2]))[ENCODER].values
    own.close()
    own.close()
    assert torch.equal(own.read(texts([3, 2]))[ENCODER].values, before)


def test_segments_are_padded_on_the_right() -> None:
    ids, mask, types = pad_segments([segment(0, 2), segment(1, 4)], torch.device("cpu"))
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert ids[0, 2:].tolist() == [0, 0]
    assert types is None


def test_rows_pad_and_unpad() -> None:
    made = rows_of([[segment(0, 2)], [segment(1, 3)], [segment(2, 1)]])
    values = torch.arange(12.0).view(6, 2)
    padded = made.pad(values)
    assert padded.shape == (3, 3, 2)
    assert torch.equal(padded[~made.mask], torch.zeros(3, 2))
    assert torch.equal(made.unpad(padded), values)
    assert made.row_of.tolist() == [0, 0, 1, 1, 1, 2]


def test_reading_batch_after_batch_gives_what_reading_each_gives(reader: Make) -> None:
    reading = reader()
    batches = [texts([3, 5]), texts([2]), texts([7, 1, 4])]
    expected = [reading.read(batch)[ENCODER].values.clone() for batch in batches]
    count = 0
    for (batch, taps), wanted in zip(reading.read_each(batches), expected, strict=True):
        assert batch is batches[count]
        assert torch.equal(taps[ENCODER].values, wanted)
        count += 1
    assert count == 3


def test_reading_batch_after_batch_uses_one_place_in_memory(reader: Make) -> None:
    places = {taps[ENCODER].values.data_ptr() for _, taps in reader().read_each([texts([6]), texts([4]), texts([2])])}
    assert len(places) == 1
