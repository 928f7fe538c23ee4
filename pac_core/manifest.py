"""``cache.json``: which store a cache folder holds and which backbones its entries came from."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pac_core.errors import BadInput, RunFailed
from pac_core.files import read_json, write_json

MANIFEST = "cache.json"
LOCK = "cache.lock"
FORMAT = 1


@dataclass(frozen=True)
class Namespace:
    """Entries of one backbone, tap set and dtype.

    Attributes:
        fingerprint: the backbone's.
        model: its path or id, as the user gave it; may be empty.
        model_type: its family.
        hidden_size: width of its activations.
        taps: tap indices of each stream.
        dtype: cache dtype.
    """

    fingerprint: str
    model: str
    model_type: str
    hidden_size: int
    taps: dict[str, tuple[int, ...]]
    dtype: str

    @property
    def label(self) -> str:
        """Model and fingerprint, for messages."""
        return f"{self.model or self.model_type} (fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True)
class Manifest:
    """Content of ``cache.json``: the store's full name and the namespaces by their id in hex."""

    store: str
    namespaces: dict[str, Namespace]

    def including(self, name: str, namespace: Namespace) -> Manifest:
        """This manifest with one namespace more."""
        return replace(self, namespaces={**self.namespaces, name: namespace})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache folder, None if it has none.

    Raises:
        BadInput: it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        data = read_json(path, "the description of a cache")
        if data["format"] != FORMAT:
            raise BadInput(f"{path}: format {data['format']} is not known to this version, which reads {FORMAT}")
        return Manifest(_text(data["store"]), {name: _namespace(n) for name, n in data["namespaces"].items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{path}: damaged ({type(error).__name__}: {error}); {WAY_OUT}") from error
    except BadInput as error:
        raise BadInput(f"{error}; {WAY_OUT}") from error


WAY_OUT = "remove that folder, or give another --cache-dir"


def _namespace(data: dict[str, Any]) -> Namespace:
    taps = {_text(stream): tuple(map(int, indices)) for stream, indices in data["taps"].items()}
    return Namespace(
        fingerprint=_text(data["fingerprint"]),
        model=_text(data["model"]),
        model_type=_text(data["model_type"]),
        hidden_size=int(data["hidden_size"]),
        taps=taps,
        dtype=_text(data["dtype"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r}")
    return value


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``cache.json`` so that a kill leaves the old or the new one."""
    data = {
        "format": FORMAT,
        "store": manifest.store,
        "namespaces": {name: asdict(namespace) for name, namespace in manifest.namespaces.items()},
    }
    write_json(folder / MANIFEST, data)


@contextlib.contextmanager
def manifest_lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from changing the manifest meanwhile.

    Raises:
        RunFailed: the folder cannot be written.
    """
    try:
        fd = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunFailed(f"cannot write to the cache folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
