"""Files that are whole at every instant: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pac_core.errors import BadInput, RunFailed

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats by their names in safetensors."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: a kill leaves the old or the new.

    Raises:
        RunFailed: the file cannot be written (disk full, no permission); the old one is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors wraps the operating system's
        reason = getattr(error, "strerror", None) or error
        raise RunFailed(f"cannot write {path}: {reason}; free some space or choose another folder") from error


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(place: Path) -> None:
        place.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda place: save_file(whole, place, metadata))


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        BadInput: no such file, or a damaged one; ``what`` says what was looked for, and perhaps the way out.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; it should hold {what}") from error
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: damaged or cut short ({error}); it should hold {what}") from error
    return tensors


def read_json(path: Path, what: str) -> Any:
    """Parsed JSON of ``path``.

    Raises:
        BadInput: no such file, or not JSON; ``what`` says what was looked for.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; it should hold {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as {what}: {error}") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: not valid JSON ({error.msg}); it should hold {what}") from error
    except (RecursionError, ValueError) as error:  # lists a thousand deep, a number of thousands of digits
        raise BadInput(f"{path}: too deep, or a number in it is too long; it should hold {what}") from error


def check_writable(folder: Path) -> None:
    """Make sure that ``folder`` can be made and written to, without leaving a trace.

    Raises:
        BadInput: it cannot be created or written.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error


def check_writable_file(path: Path, flag: str) -> None:
    """Make sure that a file can be written at ``path``, before the work whose result it is to hold.

    Args:
        flag: of the command line, by which it was given.

    Raises:
        BadInput: it is a folder, or its folder cannot be created or written.
    """
    if path.is_dir():
        raise BadInput(f"{flag} {path}: it is a folder; name a file")
    check_writable(path.absolute().parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
