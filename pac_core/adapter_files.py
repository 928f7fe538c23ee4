"""A saved adapter: ``adapter_config.json`` and ``adapter_model.safetensors``, named and keyed as PEFT's files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneInfo
from pac_core.contracts.formats import WeightFormat
from pac_core.errors import BadInput
from pac_core.examples import Task
from pac_core.files import read_json, read_tensors, write_json, write_tensors

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FORMAT = 1

_TASK_TYPES = {
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
    "causal-lm": "CAUSAL_LM",
}


class AdapterFile(BaseModel):
    """The content of ``adapter_config.json``: PEFT's usual keys, then ours.

    ``peft_type`` is a value that PEFT does not know, so that PEFT refuses the folder rather than misreads it.
    """

    model_config = ConfigDict(extra="ignore")

    peft_type: str
    base_model_name_or_path: str | None
    revision: str | None = None
    task_type: str
    inference_mode: bool = True
    auto_mapping: None = None
    pac_format: int
    adapter: dict[str, Any]
    task: Task
    backbone: dict[str, Any]
    max_length: int | None = None
    columns: dict[str, str] = {}
    chat: bool | None = None
    """Whether it was trained on chats rather than prompts; None if that is not known."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from a folder."""

    folder: Path
    file: AdapterFile
    config: AdapterConfig
    tensors: dict[str, Tensor]

    @property
    def task(self) -> Task:
        return self.file.task

    @property
    def dtype(self) -> torch.dtype:
        """Number format that the backbone had in training."""
        found = getattr(torch, str(self.file.backbone.get("dtype", "float32")), None)
        if not isinstance(found, torch.dtype):
            raise BadInput(f"{self.folder / CONFIG_NAME}: backbone.dtype is no number format; copy the file again")
        return found

    @property
    def weights(self) -> WeightFormat:
        """How the backbone's weights were held in training."""
        found: WeightFormat = self.file.backbone.get("weights", "native")
        if found not in get_args(WeightFormat):
            raise BadInput(
                f"{self.folder / CONFIG_NAME}: backbone.weights is {found!r}, which this version does not know; update "
                "pac-core, or copy the file again"
            )
        return found

    def check(self, info: BackboneInfo) -> None:
        """Make sure that the adapter was trained on this backbone.

        Raises:
            BadInput: another architecture, or the same one with other weights, or with weights held otherwise.
        """
        trained = self.file.backbone
        if self.dtype != info.dtype:
            raise BadInput(
                f"{self.folder}: this adapter was trained on a {str(self.dtype)[6:]} backbone, but the model given is "
                f"{str(info.dtype)[6:]}; load the model with dtype={self.dtype}"
            )
        if self.weights != info.weights:
            raise BadInput(
                f"{self.folder}: this adapter was trained on a backbone with {self.weights} weights, but the model "
                f"given has {info.weights} ones; give the model's folder, it is loaded as the adapter needs it"
            )
        if trained.get("fingerprint") != info.fingerprint:
            raise BadInput(
                f"{self.folder}: this adapter was trained on {trained.get('model_type')} "
                f"'{self.file.base_model_name_or_path}' (fingerprint {trained.get('fingerprint', '?')[:12]}), but the "
                f"model given is a {info.model_type} with fingerprint {info.fingerprint[:12]}; "
                "give the model it was trained on"
            )

    def restore(self, module: nn.Module) -> None:
        """Load the weights into ``module``.

        Raises:
            BadInput: the file's tensors are not those that the configuration asks for.
        """
        try:
            module.load_state_dict(self.tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise BadInput(
                f"{self.folder / WEIGHTS_NAME}: does not fit {CONFIG_NAME} beside it ({reason}); copy both files again"
            ) from error


def write_adapter(
    folder: Path,
    config: AdapterConfig,
    task: Task,
    info: BackboneInfo,
    model_name: str,
    tensors: dict[str, Tensor],
    *,
    max_length: int | None = None,
    columns: dict[str, str] | None = None,
    chat: bool | None = None,
) -> None:
    """Write both files, the weights first, each atomically."""
    dtype = str(info.dtype).removeprefix("torch.")
    file = AdapterFile(
        peft_type=f"PAC_{config.name.upper()}",
        base_model_name_or_path=model_name or None,
        task_type=_TASK_TYPES[task.kind],
        pac_format=FORMAT,
        adapter=config.model_dump(),
        task=task,
        backbone={
            "model_type": info.model_type,
            "fingerprint": info.fingerprint,
            "dtype": dtype,
            "weights": info.weights,
        },
        max_length=max_length,
        columns=columns or {},
        chat=chat,
    )
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
    write_json(folder / CONFIG_NAME, file.model_dump(mode="json"))


def read_adapter(folder: Path) -> SavedAdapter:
    """Read a folder written by `write_adapter`.

    Raises:
        BadInput: not a folder, not an adapter of PAC, or a damaged file; the text names it.
    """
    path = folder / CONFIG_NAME
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; an adapter is a folder with {CONFIG_NAME}, written by pac finetune")
    content = read_json(path, "the configuration of a PAC adapter")
    try:
        file = AdapterFile.model_validate(content)
        config = AdapterConfig.model_validate(file.adapter)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        kind = content.get("peft_type") if isinstance(content, dict) else None
        hint = f" (peft_type {kind}: an adapter of PEFT, not of PAC)" if kind and "pac_format" not in content else ""
        raise BadInput(f"{path}: not a PAC adapter: {place}: {first['msg']}{hint}") from error
    if file.pac_format != FORMAT:
        raise BadInput(
            f"{path}: format {file.pac_format} is not known to this version, which reads {FORMAT}; update pac-core"
        )
    weights = read_tensors(folder / WEIGHTS_NAME, "the adapter's weights; train or copy it again")
    return SavedAdapter(folder, file, config, weights)
