"""What the tests of `BackboneSuite` share: the author's model, live and on disk, and the reference."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource, Weight
from pac_core.registry import Registry
from pac_core.testing.backbone_reference import Batch, model_taps


class BackboneParts(ABC):
    """Settings and fixtures; see `pac_core.testing.BackboneSuite`."""

    padding_sides: ClassVar[tuple[str, ...]] = ("right", "left")
    left_positions: ClassVar[bool] = True
    token_types: ClassVar[bool] = False
    tolerance: ClassVar[float] = 2e-5

    @abstractmethod
    def make_model(self) -> Any:
        """A tiny transformers model with random weights, with or without a task head."""

    def build(self, source: BackboneSource) -> Backbone:
        """The backbone of ``source``; override it where your plugin is not installed."""
        return load_backbone(source, Registry())

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Any:
        torch.manual_seed(0)
        model = cls().make_model()
        # fresh biases are 0 and norms 1, which would hide a part that is left out
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()

    @pytest.fixture(scope="class")
    @classmethod
    def live(cls, model: Any) -> Backbone:
        return cls().build(BackboneSource(model=model))

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def disk(cls, folder: Path) -> Backbone:
        return cls().build(BackboneSource(folder))

    def reference(self, model: Any, batch: Batch, side: str, **extra: Any) -> dict[str, list[Tensor]]:
        """Hidden states of the model's own forward."""
        if side == "left" and self.left_positions:
            extra["position_ids"] = (batch.mask.long().cumsum(-1) - 1).clamp(min=0)
        stream = ENCODER if not self._generates(model) else DECODER
        return model_taps(model, stream, batch, **extra)

    def _generates(self, model: Any) -> bool:
        return self.build(BackboneSource(model=model)).info.streams[-1].causal


def copy_slice(weights: Iterable[Weight], folder: Path, target: Path) -> Path:
    """A checkpoint in ``target`` that holds ``weights`` of the one in ``folder`` alone; returns it."""
    target.mkdir(exist_ok=True)
    shutil.copy(folder / "config.json", target)
    tensors = {weight.stored: load_file(weight.file)[weight.stored] for weight in weights}
    save_file(tensors, target / "model.safetensors")
    return target


def change(file: Path, name: str, value: float) -> None:
    """Add ``value`` to the first number of a tensor of a safetensors file."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] += value
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
