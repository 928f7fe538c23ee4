"""What weights take in memory, from headers alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import DECODER, ENCODER, PARTIAL, BackboneSource
from pac_core.errors import BadInput
from pac_core.registry import Registry
from pac_core.testing.tiny import LAYERS, VOCABULARY, WIDTH, tiny_model
from pac_core.weights import describe, slice_bytes, weight_bytes

FAMILIES = ("bert", "gpt2", "llama", "t5", "bart")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_slice_takes_what_its_tensors_take_once_loaded(
    family: str, dtype: torch.dtype, checkpoint: Callable[[str], Path]
) -> None:
    backbone = describe(checkpoint(family), dtype, Registry())
    for part in (
        None,
        *({s.name: (1, s.layers)} for s in backbone.info.streams),
        {backbone.info.streams[0].name: (0, 1)},
    ):
        held = load_backbone(BackboneSource(checkpoint(family), layers=part, dtype=dtype), Registry())
        modules = [held._base, *held._kept.values()]
        tensors = [p for module in modules for p in module.parameters()]
        head, bias = held._head or (None, None)
        tensors += [t for t in (getattr(head, "weight", None), bias) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.numel() * t.element_size() for t in tensors}
        assert slice_bytes(backbone, part) == sum(storages.values())


def test_parts_of_a_model(checkpoint: Callable[[str], Path]) -> None:
    found = weight_bytes(describe(checkpoint("llama"), None, Registry()))
    table = VOCABULARY * WIDTH * 4
    assert found.embeddings == {DECODER: table}
    assert found.ends == {DECODER: table + WIDTH * 4}
    (layer,) = set(found.layers[DECODER])
    assert len(found.layers[DECODER]) == LAYERS
    whole = slice_bytes(describe(checkpoint("llama"), None, Registry()))
    assert whole == LAYERS * layer + 2 * table + WIDTH * 4


def test_tied_embeddings_count_once_in_a_slice_and_in_each_part(checkpoint: Callable[[str], Path]) -> None:
    backbone = describe(checkpoint("t5"), None, Registry())
    found = weight_bytes(backbone)
    assert set(found.embeddings) == set(found.layers) == {ENCODER, DECODER}
    table = VOCABULARY * WIDTH * 4
    assert min(found.embeddings.values()) >= table
    assert found.ends[DECODER] >= table > found.ends[ENCODER]
    parts = sum(map(sum, found.layers.values())) + sum(found.embeddings.values()) + sum(found.ends.values())
    assert parts >= slice_bytes(backbone) + 2 * table


def test_a_description_reads_the_weights_only_for_digests(checkpoint: Callable[[str], Path]) -> None:
    headers = describe(checkpoint("bert"), None, Registry())
    assert headers.info.fingerprint.endswith(PARTIAL)
    whole = describe(checkpoint("bert"), None, Registry(), digests=True)
    loaded = load_backbone(BackboneSource(checkpoint("bert")), Registry())
    assert whole.info == loaded.info
    assert whole.digests == loaded.digests
    with pytest.raises(BadInput, match="save_pretrained"):
        slice_bytes(load_backbone(BackboneSource(model=tiny_model("bert")), Registry()))
