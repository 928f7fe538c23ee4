"""Checkpoints of any size that take no room: their weights are a hole in the file. For emulated devices, which read
nothing but headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from pac_core.testing.tiny import tiny_tokenizer


def save_hollow(folder: Path, config: Any) -> Path:
    """Write a checkpoint of the model that the transformers ``config`` describes, in float32, with the tiny tokenizer;
    returns ``folder``. All weights read as zeros."""
    tiny_tokenizer().save_pretrained(folder)
    config.save_pretrained(folder)
    with torch.device("meta"):
        weights = hf.AutoModel.from_config(config).state_dict()
    heads: dict[str, Any] = {}
    end = 0
    for name, tensor in weights.items():
        begin, end = end, end + 4 * tensor.numel()
        heads[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(heads).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
