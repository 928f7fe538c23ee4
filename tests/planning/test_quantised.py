"""Planning with int8 weights: bytes as they are held, and plans that say so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from pac_core.backbones import load_backbone
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.make import plan
from pac_core.planning.memory import stage_bytes
from pac_core.planning.profile import analytic_profile, quantised, unquantisable
from pac_core.planning.stage_memory import stage_memory
from pac_core.registry import Registry

ADAPTER = AdapterConfig(reduction=8, init="random")
JOB = Job(8, 4, 16, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints whose widths are multiples of a block."""
    common = {"vocab_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    configs = {
        "bert": lambda: hf.BertConfig(**common, hidden_size=128, intermediate_size=256, max_position_embeddings=64),
        "llama": lambda: hf.LlamaConfig(**common, hidden_size=128, intermediate_size=192),
        "gpt2": lambda: hf.GPT2Config(vocab_size=64, n_embd=128, n_layer=4, n_head=4, n_positions=64),
    }
    models = {"bert": hf.BertModel, "llama": hf.LlamaForCausalLM, "gpt2": hf.GPT2LMHeadModel}
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            models[family](configs[family]()).save_pretrained(made[family])
        return made[family]

    return of


def open_backbone(path: Path, **fields: Any) -> Backbone:
    return load_backbone(BackboneSource(path, **fields), Registry())


def profile_of(backbone: Backbone) -> Profile:
    target = backbone.info.streams[-1].name
    return analytic_profile(backbone.info, ADAPTER, target, head=target == DECODER)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_an_int8_profile_counts_what_int8_weights_take(folder: Any, family: str, dtype: torch.dtype) -> None:
    backbone = open_backbone(folder(family), layers={}, dtype=dtype, weights="int8")
    native = profile_of(open_backbone(folder(family), layers={}, dtype=dtype))
    found = quantised(native)
    assert found == profile_of(backbone)
    (stream,) = native.layers
    for number, layer in enumerate(found.layers[stream]):
        held = sum(w.nbytes for w in backbone.weights() if w.layer == (stream, number) and len(w.shape) == 2)
        assert layer.weight_bytes == held
        assert layer.flops == native.layers[stream][number].flops
    assert (found.embedding_bytes, found.head_bytes) == (native.embedding_bytes, native.head_bytes)
    assert quantised(found) == found
    assert quantised(unquantisable(native)) == unquantisable(native)


def test_what_fits_only_as_int8_is_planned_so(folder: Any) -> None:
    native = profile_of(open_backbone(folder("bert"), layers={}))
    smaller = quantised(native)
    needed = stage_bytes(smaller, {ENCODER: (0, 4)}, JOB, 4, 1)
    cluster = Cluster((DeviceProfile("pi", 1e9, round(needed)),))
    with pytest.raises(BadInput):
        plan(native, cluster, JOB, "single")
    assert plan(smaller, cluster, JOB, "single").weights == "int8"


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_stage_is_predicted_to_hold_its_int8_weights(folder: Any, family: str) -> None:
    backbone = open_backbone(folder(family), layers={}, weights="int8")
    stream = backbone.info.streams[0].name
    slices = [{stream: (0, 2)}, {stream: (2, 4)}]
    native = Plan(tuple(StagePlan(held, (str(i),), (4,)) for i, held in enumerate(slices)), 2)
    both = (native, replace(native, weights="int8"))
    for rank, held in enumerate(slices):
        plain, small = (stage_memory(backbone.info, ADAPTER, made, rank, 16, head=family == "llama") for made in both)
        assert small.weights == pytest.approx(sum(w.nbytes for w in backbone.weights(held)), rel=0.05)
        assert (small.side, small.in_flight, small.messages) == (plain.side, plain.in_flight, plain.messages)
        widest = max(w.shape[0] * w.shape[1] for w in backbone.weights() if w.layer is not None and len(w.shape) == 2)
        assert small.working - plain.working == 4 * widest
