"""The part of `BackboneSuite` about weights that are held as int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.errors import BadInput
from pac_core.testing.backbone_parts import BackboneParts, copy_slice
from pac_core.testing.backbone_reference import backbone_taps, decode, differing_taps, make_batch, split, whole


class BackboneInt8(BackboneParts):
    """Tests of int8 weights.

    Attributes:
        int8: whether the family can hold its layers' matrices as int8; if not, it has to say so.
        int8_error: largest difference of a hidden state to that of native weights, in the norm of all tokens.
    """

    int8: ClassVar[bool] = True
    int8_error: ClassVar[float] = 0.03

    @pytest.fixture(scope="class")
    @classmethod
    def quantised(cls, folder: Path) -> Backbone:
        if not cls.int8:
            with pytest.raises(BadInput, match="int8"):
                cls().build(BackboneSource(folder, weights="int8"))
            pytest.skip("the family has no int8 weights")
        return cls().build(BackboneSource(folder, weights="int8"))

    def test_int8_weights_give_nearly_the_same_taps_in_less_memory(self, disk: Backbone, quantised: Backbone) -> None:
        batch = make_batch(disk, [5, 11, 8], [4, 9, 6], "right", 20)
        native, own = (backbone_taps([b], [whole(b)], batch) for b in (disk, quantised))
        for stream, taps in native.items():
            mask = batch.of(stream)[1]
            assert torch.equal(own[stream][0][mask], taps[0][mask])
            for tap, expected in zip(own[stream][1:], taps[1:], strict=True):
                assert tap.dtype == expected.dtype
                error = (tap - expected)[mask].norm() / expected[mask].norm()
                assert 0 < error < self.int8_error
        sizes = [sum(w.nbytes for w in b.weights() if w.layer is not None) for b in (disk, quantised)]
        assert sizes[1] < 0.5 * sizes[0]

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
    def test_slices_with_int8_weights_give_the_bits_of_the_whole(
        self, quantised: Backbone, folder: Path, tmp_path: Path, dtype: torch.dtype | None
    ) -> None:
        expected = self.build(BackboneSource(folder, dtype=dtype, weights="int8"))
        nothing = self.build(BackboneSource(folder, layers={}, dtype=dtype, weights="int8"))
        ranges = split(expected, [0.4, 0.7])
        slices = []
        for number, held in enumerate(ranges):
            alone = copy_slice(nothing.weights(held), folder, tmp_path / str(number))
            source = BackboneSource(alone, None, held, nothing.info.dtype, None, nothing.digests, "int8")
            slices.append(self.build(source))
        assert {str(part.info) for part in slices} == {str(expected.info)}
        batch = make_batch(expected, [5, 11, 8], [4, 9, 6], "right", 21)
        own = backbone_taps(slices, ranges, batch)
        assert differing_taps(own, backbone_taps([expected], [whole(expected)], batch), batch) == []

    def test_int8_weights_have_a_fingerprint_of_their_own(self, disk: Backbone, quantised: Backbone) -> None:
        assert (disk.info.weights, quantised.info.weights) == ("native", "int8")
        assert quantised.info.fingerprint != disk.info.fingerprint
        assert quantised.digests == disk.digests

    def test_decoding_with_int8_weights_equals_a_full_pass(self, quantised: Backbone) -> None:
        if not quantised.info.streams[-1].causal:
            pytest.skip("encoders do not decode")
        batch = make_batch(quantised, [12, 12], [9, 9], "right", 22)
        taps = backbone_taps([quantised], [whole(quantised)], batch)
        extra = {"encoder": taps[ENCODER][-1], "encoder_mask": batch.mask} if ENCODER in taps else {}
        hidden = decode([quantised], [whole(quantised)], batch, 4, **extra)
        torch.testing.assert_close(hidden, taps[DECODER][-1], rtol=self.tolerance, atol=self.tolerance)

    def test_pruning_reads_the_weights_before_they_are_quantised(self, disk: Backbone, quantised: Backbone) -> None:
        for stream in disk.info.streams:
            own, expected = (b.layer_weights(stream.name, 1) for b in (quantised, disk))
            assert torch.equal(own.attention.query, expected.attention.query)
            assert torch.equal(own.down, expected.down)

    def test_a_model_in_memory_is_not_quantised(self, model: Any, quantised: Backbone) -> None:
        with pytest.raises(BadInput, match="give its folder"):
            self.build(BackboneSource(model=model, weights="int8"))
