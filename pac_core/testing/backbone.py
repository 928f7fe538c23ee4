"""The conformance suite of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pac_core.contracts.backbone import DECODER, PARTIAL, Backbone, BackboneSource
from pac_core.errors import BadInput
from pac_core.testing.backbone_int8 import BackboneInt8
from pac_core.testing.backbone_life import BackboneLife
from pac_core.testing.backbone_parts import change, copy_slice
from pac_core.testing.backbone_reference import Batch, backbone_taps, differing_taps, make_batch, split, whole

LENGTHS = st.lists(st.integers(2, 12), min_size=3, max_size=3)
DRAWN = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors],
)


class BackboneSuite(BackboneLife, BackboneInt8):
    """Everything the `Backbone` contract promises, tested on a tiny model of your family.

    Subclass it in a test module, name the class ``Test...`` and give `make_model`::

        class TestMyFamily(BackboneSuite):
            def make_model(self):
                return MyModelForCausalLM(MyConfig(hidden_size=32, num_hidden_layers=3, ...))

    The model should have three layers or more, a vocabulary of at least 32, and what sets the family apart (grouped
    heads, sliding windows) switched on.

    Attributes:
        padding_sides: on which sides the family's own forward can be told about padding.
        left_positions: whether that forward takes ``position_ids``, and needs them when padding is on the left.
        token_types: whether the embeddings read ``token_type_ids``.
        tolerance: largest difference allowed between decoding with a past and a full pass (float32).
        int8, int8_error: see `BackboneInt8`.
    """

    # Taps.

    @given(lengths=LENGTHS, targets=LENGTHS, seed=st.integers(0, 99), left=st.booleans(), data=st.data())
    @DRAWN
    def test_taps_of_any_slices_are_the_models_hidden_states_bit_for_bit(
        self, model: Any, live: Backbone, lengths: list[int], targets: list[int], seed: int, left: bool, data: Any
    ) -> None:
        side = self.padding_sides[-1] if left else self.padding_sides[0]
        cuts = data.draw(st.lists(st.floats(0, 1), max_size=3), label="cuts")
        batch = make_batch(model, lengths, targets, side, seed)
        ranges = split(live, cuts)
        own = backbone_taps([live] * len(ranges), ranges, batch)
        assert differing_taps(own, self.reference(model, batch, side), batch) == []

    def test_full_rows_take_the_same_path_as_the_model(self, model: Any, live: Backbone) -> None:
        batch = make_batch(model, [9, 9], [7, 7], "right", 1)
        own = backbone_taps([live], [whole(live)], batch)
        assert differing_taps(own, self.reference(model, batch, "right"), batch) == []

    @pytest.mark.parametrize("cuts", [[], [0.0], [0.4], [0.4, 0.7], [1.0]], ids=str)
    def test_slices_loaded_from_disk_give_the_same_bits(
        self, model: Any, disk: Backbone, folder: Path, cuts: list[float]
    ) -> None:
        ranges = split(disk, cuts)
        slices = [self.build(BackboneSource(folder, layers=held)) for held in ranges]
        for side in self.padding_sides:
            batch = make_batch(model, [5, 11, 8], [4, 9, 6], side, 2)
            own = backbone_taps(slices, ranges, batch)
            assert differing_taps(own, self.reference(model, batch, side), batch) == []

    def test_token_ids_of_padding_do_not_matter(self, model: Any, live: Backbone) -> None:
        for side in self.padding_sides:
            batch = make_batch(model, [5, 11], [4, 9], side, 3)
            other = Batch(
                batch.ids.masked_fill(~batch.mask, 7),
                batch.mask,
                None if batch.decoder_ids is None else batch.decoder_ids.masked_fill(~batch.of(DECODER)[1], 7),
                batch.decoder_mask,
            )
            expected = backbone_taps([live], [whole(live)], batch)
            assert differing_taps(backbone_taps([live], [whole(live)], other), expected, batch) == []

    def test_a_row_gives_the_same_taps_wherever_its_padding_is(self, model: Any, live: Backbone) -> None:
        right = make_batch(model, [5, 11], [4, 9], "right", 4)
        left = make_batch(model, [5, 11], [4, 9], "left", 4)
        ids = left.ids.masked_scatter(left.mask, right.ids[right.mask])
        moved = Batch(ids, left.mask, right.decoder_ids, right.decoder_mask)
        one, two = (backbone_taps([live], [whole(live)], batch) for batch in (right, moved))
        for stream in one:
            for a, b in zip(one[stream], two[stream], strict=True):
                torch.testing.assert_close(a[right.of(stream)[1]], b[moved.of(stream)[1]], rtol=1e-4, atol=1e-5)

    def test_token_types_reach_the_embeddings(self, model: Any, live: Backbone) -> None:
        if not self.token_types:
            pytest.skip("the family has no token types")
        batch = make_batch(model, [5, 11], [4, 9], "right", 5)
        types = (torch.arange(11) > 3).long().expand(2, 11)
        stream = live.info.streams[0].name
        embedded = live.embed(stream, batch.ids, batch.mask, token_type_ids=types)["hidden"]
        expected = self.reference(model, batch, "right", token_type_ids=types)[stream][0]
        assert torch.equal(embedded[batch.mask], expected[batch.mask])
        assert not torch.equal(embedded, live.embed(stream, batch.ids, batch.mask)["hidden"])

    def test_taps_are_constants_that_may_enter_autograd(self, model: Any, live: Backbone) -> None:
        for taps in backbone_taps([live], [whole(live)], make_batch(model, [5, 7], [3, 4], "right", 6)).values():
            for tap in taps:
                assert not tap.requires_grad
                scale = torch.ones((), requires_grad=True)
                (gradient,) = torch.autograd.grad((tap * scale).sum(), scale)
                assert gradient.isfinite()
        stream = live.info.streams[0].name
        ids = torch.full((1, 3), 7)
        boundary = live.embed(stream, ids, ids.bool())
        boundary["hidden"] = boundary["hidden"].clone().requires_grad_()
        for after in live.run(stream, 0, 1, boundary):
            assert torch.is_grad_enabled()
            assert not after["hidden"].requires_grad

    def test_a_model_in_memory_is_frozen_and_dropout_is_off(self, model: Any) -> None:
        model.train().requires_grad_(True)
        backbone = self.build(BackboneSource(model=model))
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
        batch = make_batch(model, [5, 7], [3, 4], "right", 7)
        one, two = (backbone_taps([backbone], [whole(backbone)], batch) for _ in range(2))
        assert differing_taps(one, two, batch) == []

    # Facts.

    def test_info_agrees_with_what_the_backbone_gives(self, model: Any, live: Backbone, disk: Backbone) -> None:
        info = live.info
        assert info == disk.info
        assert info.model_type == model.config.model_type
        taps = backbone_taps([live], [whole(live)], make_batch(model, [5, 7], [3, 4], "right", 8))
        for stream in info.streams:
            assert len(taps[stream.name]) == stream.layers + 1
            assert {(t.shape[-1], t.dtype) for t in taps[stream.name]} == {(info.hidden_size, info.dtype)}
        assert info.is_encoder_decoder == model.config.is_encoder_decoder
        assert live.config.model_type == disk.config.model_type == info.model_type
        assert (live.decoder_start() is None) != info.is_encoder_decoder

    def test_layer_weights_have_the_family_independent_shapes(
        self, model: Any, live: Backbone, disk: Backbone, folder: Path
    ) -> None:
        info, storages = live.info, {p.untyped_storage().data_ptr() for p in model.parameters()}
        nothing = self.build(BackboneSource(folder, layers={}))
        for stream in info.streams:
            for layer in range(stream.layers):
                weights = live.layer_weights(stream.name, layer)
                assert (weights.cross is not None) == stream.cross
                assert (weights.gate is not None) == info.gated_mlp
                attentions = [a for a in (weights.attention, weights.cross) if a is not None]
                for a in attentions:
                    assert a.query.shape[1] == a.key.shape[1] == a.value.shape[1] == info.hidden_size
                    assert a.output.shape == (info.hidden_size, a.query.shape[0])
                    assert a.key.shape == a.value.shape
                    assert a.query.shape[0] % a.key.shape[0] == 0
                ups = [weights.up] if weights.gate is None else [weights.up, weights.gate]
                assert {tuple(up.shape) for up in ups} == {(weights.down.shape[1], info.hidden_size)}
                assert weights.down.shape[0] == info.hidden_size
                matrices = [*ups, weights.down, *(m for a in attentions for m in (a.query, a.key, a.value, a.output))]
                assert {m.untyped_storage().data_ptr() for m in matrices} <= storages
                for other in (disk, nothing):
                    loaded = other.layer_weights(stream.name, layer)
                    assert torch.equal(loaded.attention.value, weights.attention.value)
                    assert torch.equal(loaded.down, weights.down)

    def test_weights_are_loaded_in_the_dtype_asked_for(self, model: Any, folder: Path) -> None:
        backbone = self.build(BackboneSource(folder, dtype=torch.bfloat16))
        assert backbone.info.dtype == torch.bfloat16
        batch = make_batch(model, [5, 7], [3, 4], "right", 9)
        reference = type(model).from_pretrained(folder, dtype=torch.bfloat16).eval()
        own = backbone_taps([backbone], [whole(backbone)], batch)
        assert differing_taps(own, self.reference(reference, batch, "right"), batch) == []
        assert backbone.info.fingerprint == self.build(BackboneSource(model=reference)).info.fingerprint

    # Fingerprints.

    def test_the_fingerprint_is_that_of_the_whole_model_however_it_is_loaded(
        self, live: Backbone, disk: Backbone, folder: Path
    ) -> None:
        slices = [self.build(BackboneSource(folder, layers=held)) for held in split(disk, [0.5])]
        assert {b.info.fingerprint for b in (live, disk, *slices)} == {live.info.fingerprint}

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
    def test_a_slice_needs_its_own_weights_and_the_digests_of_the_others(
        self, model: Any, folder: Path, tmp_path: Path, dtype: torch.dtype | None
    ) -> None:
        nothing = self.build(BackboneSource(folder, layers={}, dtype=dtype))
        ranges = split(nothing, [0.4, 0.7])
        slices = []
        for number, held in enumerate(ranges):
            alone = copy_slice(nothing.weights(held), folder, tmp_path / str(number))
            source = BackboneSource(alone, layers=held, dtype=nothing.info.dtype, digests=nothing.digests)
            slices.append(self.build(source))
        assert {part.info.fingerprint for part in slices} == {nothing.info.fingerprint}
        assert not nothing.info.fingerprint.endswith(PARTIAL)
        batch = make_batch(model, [5, 11, 8], [4, 9, 6], "right", 2)
        expected = self.build(BackboneSource(folder, dtype=dtype))
        own = backbone_taps(slices, ranges, batch)
        assert differing_taps(own, backbone_taps([expected], [whole(expected)], batch), batch) == []

    def test_every_weight_of_a_slice_has_a_digest_that_tells_of_changes(self, folder: Path, tmp_path: Path) -> None:
        nothing = self.build(BackboneSource(folder, layers={}))
        for held in split(nothing, [0.5]):
            alone = copy_slice(nothing.weights(held), folder, tmp_path / "slice")
            for weight in nothing.weights(held):
                change(alone / "model.safetensors", weight.stored, 1.0)
            source = BackboneSource(alone, layers=held, dtype=nothing.info.dtype, digests=nothing.digests)
            changed = self.build(source)
            assert changed.info.fingerprint != nothing.info.fingerprint
            differ = {name for name in changed.digests if changed.digests[name] != nothing.digests[name]}
            assert differ >= {weight.name for weight in nothing.weights(held)}

    def test_weights_say_what_a_slice_takes(self, model: Any, folder: Path) -> None:
        nothing = self.build(BackboneSource(folder, layers={}, digests={}))
        assert nothing.info.fingerprint.endswith(PARTIAL)
        assert nothing.digests == {}
        for held in (*split(nothing, [0.4, 0.7]), None):
            weights = nothing.weights(held)
            assert len({weight.stored for weight in weights}) == len(weights)
            for weight in weights:
                data = weight.file.read_bytes()[weight.start : weight.start + weight.size]
                stored = load_file(weight.file)[weight.stored]
                assert data == stored.flatten().view(torch.uint8).numpy().tobytes()
                assert weight.nbytes == len(data)
        half = self.build(BackboneSource(folder, layers={}, digests={}, dtype=torch.bfloat16))
        assert 2 * sum(w.nbytes for w in half.weights()) == sum(w.nbytes for w in nothing.weights())
        with pytest.raises(BadInput, match="save_pretrained"):
            self.build(BackboneSource(model=model)).weights()

    def test_whatever_changes_a_tap_changes_the_fingerprint(self, model: Any, live: Backbone) -> None:
        batch = make_batch(model, [5, 7], [3, 4], "right", 10)
        before = backbone_taps([live], [whole(live)], batch)
        fingerprints = {live.info.fingerprint}
        for parameter in model.parameters():
            kept = parameter.detach().clone()
            parameter.data.add_(torch.randn_like(kept))
            changed = self.build(BackboneSource(model=model))
            if changed.info.fingerprint in fingerprints:
                assert differing_taps(backbone_taps([changed], [whole(changed)], batch), before, batch) == []
            fingerprints.add(changed.info.fingerprint)
            parameter.data.copy_(kept)
        assert len(fingerprints) > 2 * live.info.streams[0].layers
        assert self.build(BackboneSource(model=model)).info.fingerprint == live.info.fingerprint
