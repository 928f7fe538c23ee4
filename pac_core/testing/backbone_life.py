"""The part of `BackboneSuite` about using a backbone: decoding, the head, memory, bad input."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.errors import BadInput
from pac_core.testing.backbone_parts import BackboneParts
from pac_core.testing.backbone_reference import Batch, backbone_taps, decode, differing_taps, make_batch, split, whole


class BackboneLife(BackboneParts):
    """Tests of decoding, head, memory and bad input."""

    # Decoding.

    def _decoding(self, model: Any, live: Backbone) -> Iterator[tuple[Batch, dict[str, Tensor], Tensor]]:
        if not live.info.streams[-1].causal:
            pytest.skip("encoders do not decode")
        for side in self.padding_sides if not live.info.is_encoder_decoder else ("right",):
            lengths = [12, 12] if side == "right" else [7, 12]
            batch = make_batch(model, lengths, [9, 9], side, 11)
            taps = backbone_taps([live], [whole(live)], batch)
            extra = {"encoder": taps[ENCODER][-1], "encoder_mask": batch.mask} if ENCODER in taps else {}
            yield batch, extra, taps[DECODER][-1]

    @pytest.mark.parametrize("first", [1, 5])
    def test_decoding_with_a_past_equals_a_full_pass(self, model: Any, live: Backbone, first: int) -> None:
        for batch, extra, expected in self._decoding(model, live):
            # one backbone that runs its layers in two parts shares one past between them
            for ranges in ([whole(live)], split(live, [0.5])):
                hidden = decode([live] * len(ranges), ranges, batch, first, **extra)
                self._assert_close(hidden, expected, batch)

    def test_decoding_on_two_slices_equals_a_full_pass(self, model: Any, live: Backbone, folder: Path) -> None:
        for batch, extra, expected in self._decoding(model, live):
            ranges = split(live, [0.4])
            slices = [self.build(BackboneSource(folder, layers=held)) for held in ranges]
            self._assert_close(decode(slices, ranges, batch, 4, **extra), expected, batch)

    def _assert_close(self, hidden: Tensor, expected: Tensor, batch: Batch) -> None:
        mask = batch.of(DECODER)[1]
        torch.testing.assert_close(hidden[mask], expected[mask], rtol=self.tolerance, atol=self.tolerance)

    # The head.

    def test_the_head_gives_the_models_logits(self, model: Any, live: Backbone, disk: Backbone, folder: Path) -> None:
        batch = make_batch(model, [9, 9], [7, 7], "right", 12)
        hidden = backbone_taps([live], [whole(live)], batch)[live.info.streams[-1].name][-1]
        if getattr(model, "lm_head", None) is None or not live.info.streams[-1].causal:
            with pytest.raises(BadInput, match="no language-model head"):
                live.head(hidden)
            return
        extra = {} if batch.decoder_ids is None else {"decoder_input_ids": batch.decoder_ids}
        logits = model(batch.ids, attention_mask=batch.mask.long(), **extra).logits
        last = self.build(BackboneSource(folder, layers=split(live, [0.5])[1]))
        for backbone in (live, disk, last):
            leaf = hidden.clone().requires_grad_()
            own = backbone.head(leaf)
            assert torch.equal(own, logits)
            (gradient,) = torch.autograd.grad(own.sum(), leaf)
            assert gradient.abs().sum() > 0
        with pytest.raises(BadInput, match="slice"):
            self.build(BackboneSource(folder, layers=split(live, [0.5])[0])).head(hidden)

    # Memory.

    @pytest.mark.parametrize("keep_head", [True, False])
    def test_release_frees_layers_and_embeddings(self, live: Backbone, folder: Path, keep_head: bool) -> None:
        backbone = self.build(BackboneSource(folder))
        stream = backbone.info.streams[0]
        weights = backbone.layer_weights(stream.name, 0)
        # families may return views, which would keep nothing alive
        bases = [m if m._base is None else m._base for m in (weights.down, weights.attention.query)]
        refs = [weakref.ref(base) for base in bases]
        del weights, bases
        hidden = torch.zeros(1, 2, backbone.info.hidden_size, dtype=backbone.info.dtype)
        has_head = self._has_head(backbone, hidden)
        backbone.release(keep_head=keep_head)
        assert [ref() for ref in refs] == [None, None]
        assert backbone.released
        assert backbone.info == live.info
        ids = torch.ones(1, 2, dtype=torch.long)
        with pytest.raises(RuntimeError, match="released"):
            backbone.embed(stream.name, ids, ids.bool())
        with pytest.raises(RuntimeError, match="released"):
            list(backbone.run(stream.name, 0, 1, {"hidden": hidden}))
        assert self._has_head(backbone, hidden) == (has_head and keep_head)

    def test_everything_moves_to_another_device(self, live: Backbone, folder: Path) -> None:
        backbone = self.build(BackboneSource(folder, layers=split(live, [0.5])[1]))
        hidden = torch.zeros(1, 2, backbone.info.hidden_size, dtype=backbone.info.dtype, device="meta")
        assert backbone.device == torch.device("cpu")
        assert backbone.to("meta") is backbone
        assert backbone.device == torch.device("meta")
        for stream in backbone.info.streams:
            assert backbone.layer_weights(stream.name, stream.layers - 1).down.is_meta
        if self._has_head(backbone, hidden):
            assert backbone.head(hidden).is_meta

    def test_release_of_a_model_in_memory_leaves_it_to_its_owner(self, model: Any) -> None:
        owned = copy.deepcopy(model)
        backbone = self.build(BackboneSource(model=owned))
        weight = weakref.ref(backbone.layer_weights(backbone.info.streams[0].name, 0).down)
        part = weakref.ref(owned.base_model)
        backbone.release(keep_head=False)
        again = self.build(BackboneSource(model=owned))
        batch = make_batch(model, [9, 9], [7, 7], "right", 13)
        live = self.build(BackboneSource(model=model))
        own, expected = (backbone_taps([b], [whole(b)], batch) for b in (again, live))
        assert differing_taps(own, expected, batch) == []
        del owned, again
        gc.collect()
        assert weight() is None
        assert part() is None
        assert backbone.released

    def _has_head(self, backbone: Backbone, hidden: Tensor) -> bool:
        try:
            backbone.head(hidden)
        except BadInput:
            return False
        return True

    # Bad input.

    def test_a_cut_off_file_is_named(self, folder: Path, tmp_path: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
        with pytest.raises(BadInput, match=r"model\.safetensors"):
            self.build(BackboneSource(tmp_path))

    def test_layers_that_do_not_exist_are_refused(self, live: Backbone, folder: Path) -> None:
        stream = live.info.streams[0]
        with pytest.raises(BadInput, match=r"\[1, 99\)"):
            self.build(BackboneSource(folder, layers={stream.name: (1, 99)}))

    def test_layers_that_are_not_held_are_refused(self, model: Any, folder: Path) -> None:
        backbone = self.build(BackboneSource(model=model))
        later = self.build(BackboneSource(folder, layers=split(backbone, [0.5])[1]))
        stream = backbone.info.streams[0]
        ids = torch.ones(1, 2, dtype=torch.long)
        boundary = backbone.embed(stream.name, ids, ids.bool())
        with pytest.raises(RuntimeError, match="holds"):
            later.embed(stream.name, ids, ids.bool())
        with pytest.raises(RuntimeError, match="holds"):
            later.run(stream.name, 0, 1, boundary)
