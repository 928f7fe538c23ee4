"""Reading single tensors of a safetensors file into memory of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from pac_core.errors import BadInput
from pac_core.files import DTYPES

CHUNK = 1 << 20
HEADER_LIMIT = 100 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: dtype, shape, and its first and last byte + 1 in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """One safetensors file, read with plain reads.

    ``safetensors.safe_open`` maps the file: tensors keep it mapped, and its pages count as the process's memory. Here a
    tensor owns its memory, and `chunks` passes over a tensor without ever holding it.

    Attributes:
        entries: what the file holds, by stored name.

    Raises:
        BadInput: the file is not a safetensors file, or is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = _read_header(path)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Tensor ``name`` in ``dtype``; it is never in memory in another one as a whole."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=dtype)
        if dtype == entry.dtype:
            with FileIO(self.path) as file:
                _read_into(file, raw_bytes(tensor), entry.start)
            return tensor
        flat, done = tensor.view(-1), 0
        for piece in self.chunks(name):
            values = torch.frombuffer(piece, dtype=entry.dtype)
            flat[done : done + len(values)] = values
            done += len(values)
        return tensor

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of tensor ``name`` in order, in pieces that are valid until the next one is asked for."""
        entry = self.entries[name]
        buffer = memoryview(bytearray(min(CHUNK, entry.end - entry.start)))
        with FileIO(self.path) as file:
            for start in range(entry.start, entry.end, CHUNK):
                piece = buffer[: min(CHUNK, entry.end - start)]
                _read_into(file, piece, start)
                yield piece


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _read_into(file: FileIO, target: memoryview, start: int) -> None:
    file.seek(start)
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise BadInput(f"{file.name}: became shorter while it was read; copy or download it again")
        done += count


def _read_header(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise BadInput(f"{path}: not a whole safetensors file ({size} bytes); copy or download it again")
        text = file.read(length)
    try:
        header = json.loads(text)
        return {
            name: _entry(path, name, fields, 8 + length, size)
            for name, fields in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: its safetensors header is damaged ({error}); copy or download it again") from error


def _entry(path: Path, name: str, fields: dict, offset: int, size: int) -> Entry:
    if fields["dtype"] not in DTYPES:
        raise BadInput(
            f"{path}: tensor {name} is stored as {fields['dtype']}, a quantised format; "
            "use the original float32, bfloat16 or float16 checkpoint"
        )
    dtype, shape = DTYPES[fields["dtype"]], tuple(fields["shape"])
    start, end = (offset + position for position in fields["data_offsets"])
    if end > size:
        raise BadInput(
            f"{path}: the file has {size} bytes, but its header needs {end} or more; it was cut off while it was "
            "copied or downloaded, fetch it again"
        )
    if end - start != torch.Size(shape).numel() * dtype.itemsize:
        raise BadInput(f"{path}: the header gives tensor {name} the wrong size; copy or download the file again")
    return Entry(dtype, shape, start, end)
