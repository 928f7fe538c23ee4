"""A checkpoint on disk or on the hub: which file holds which tensor, under the names of the bare model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from pac_core.backbones import find_file
from pac_core.errors import BadInput
from pac_plugins.backbones.tensor_file import Entry, TensorFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OLD_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


class Checkpoint:
    """The tensors of a safetensors checkpoint, single file or sharded, opened file by file as they are asked for.

    Args:
        path: folder or hub id.
        prefixes: what task models put before the bare model's names, without the dot.

    Raises:
        BadInput: there are no safetensors files; here and in all methods for files that are missing or damaged.
    """

    def __init__(self, path: str | Path, prefixes: Sequence[str]) -> None:
        self.path = path
        self._prefixes = ("", *(f"{prefix}." for prefix in prefixes))
        self._files: dict[str, TensorFile] = {}
        self._opening = Lock()
        self._weight_map = self._single() or self._sharded()

    def stored_name(self, names: Iterable[str]) -> str | None:
        """The name under which the first of ``names`` is stored, None if none of them is."""
        for name in names:
            for candidate in self._candidates(name):
                if candidate in self._weight_map:
                    return candidate
        return None

    def entry(self, stored: str) -> Entry:
        """Dtype, shape and place of a stored tensor."""
        return self._file(stored).entries[stored]

    def read(self, stored: str, dtype: torch.dtype) -> Tensor:
        """A stored tensor in ``dtype``, in memory of its own."""
        return self._file(stored).read(stored, dtype)

    def chunks(self, stored: str) -> Iterator[memoryview]:
        """The bytes of a stored tensor, piece by piece."""
        return self._file(stored).chunks(stored)

    def on_disk(self, stored: str) -> bool:
        """Whether the tensor can be read without fetching anything: a device holds only the shards it needs."""
        return self._weight_map[stored] in self._files or self._local(self._weight_map[stored]) is not None

    def file(self, stored: str) -> Path:
        """The file on this device that holds a stored tensor."""
        return self._file(stored).path

    def file_name(self, stored: str) -> str:
        """Name of the file that holds a stored tensor."""
        return self._weight_map[stored]

    def _candidates(self, name: str) -> Iterator[str]:
        for prefix in self._prefixes:
            yield prefix + name
            for new, old in OLD_NAMES:
                if name.endswith(new):
                    yield prefix + name.removesuffix(new) + old

    def _single(self) -> dict[str, str] | None:
        file = find_file(self.path, SINGLE)
        if file is None:
            return None
        self._files[SINGLE] = TensorFile(file)
        return dict.fromkeys(self._files[SINGLE].entries, SINGLE)

    def _sharded(self) -> dict[str, str]:
        file = find_file(self.path, INDEX)
        if file is None:
            raise BadInput(f"{self.path}: {self._no_safetensors()}")
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{file}: not a safetensors index ({error}); copy or download it again") from error

    def _no_safetensors(self) -> str:
        if any(find_file(self.path, pickle) for pickle in PICKLES):
            return (
                "the weights are a pickle (pytorch_model.bin), which can run code when it is opened; convert it to "
                "safetensors with AutoModel.from_pretrained(folder).save_pretrained(folder) where you trust it"
            )
        return f"neither {SINGLE} nor {INDEX} is there; save the model with save_pretrained, or give another folder"

    def _local(self, name: str) -> Path | None:
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(str(self.path), name)
        return Path(cached) if isinstance(cached, str) else None

    def _file(self, stored: str) -> TensorFile:
        name = self._weight_map[stored]
        # tensors are read in threads; a shard is fetched and opened once
        with self._opening:
            if name not in self._files:
                self._files[name] = self._open(name, stored)
        if stored not in self._files[name].entries:
            raise BadInput(f"{self.path}: {name} has no tensor {stored}, though {INDEX} says so; download both again")
        return self._files[name]

    def _open(self, name: str, stored: str) -> TensorFile:
        file = find_file(self.path, name)
        if file is None:
            raise BadInput(f"{self.path}: {name} is missing, it holds {stored}; copy or download it again")
        return TensorFile(file)
