"""What a model's configuration alone tells."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pac_core.backbones import UNREAD, describe, load_backbone
from pac_core.contracts.backbone import BackboneSource
from pac_core.errors import BadInput, UnknownPlugin
from pac_core.registry import Registry
from pac_core.testing.tiny import FAMILIES, save_tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_described_without_its_weights(family: str, tmp_path: Path) -> None:
    registry = Registry()
    save_tiny(tmp_path, family)
    whole = load_backbone(BackboneSource(tmp_path, dtype=torch.bfloat16), registry).info
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert describe(str(tmp_path), registry, torch.bfloat16) == replace(whole, fingerprint=UNREAD)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        describe(str(tmp_path), Registry())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": "wide"}))
    with pytest.raises(BadInput, match=r"config\.json: transformers does not accept this configuration") as caught:
        describe(str(tmp_path), Registry())
    assert caught.value.exit_code == 2
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(UnknownPlugin, match="abacus"):
        describe(str(tmp_path), Registry())
