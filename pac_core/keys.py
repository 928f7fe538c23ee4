"""A folder of keys: this device's own, and who may take part in which cluster.

    DIR/device.secret               this device's secret key; for its owner's eyes only
    DIR/device.pub                  its public key and name, to be given to other devices
    DIR/allowed/CLUSTER/NAME.pub    the public key of a device that may take part in a cluster

Keys are 40 characters of Z85, as ZeroMQ writes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pac_core.errors import BadInput

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[0-9a-zA-Z_][0-9a-zA-Z._\-]{0,63}")
_MOST_BYTES = 4096


@dataclass(frozen=True)
class KeyPair:
    """A device's keys. ``public`` names it to others; ``secret`` is left out when the pair is printed."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


@dataclass(frozen=True)
class KeyFolder:
    """The keys in a folder.

    Attributes:
        path: of the folder.
    """

    path: Path

    def make(self, name: str, new_keys: Callable[[], KeyPair]) -> str:
        """Make this device's keys, and return the public one.

        Args:
            name: of this device, for people.
            new_keys: see `pac_core.hookspecs.pac_register_transports`.

        Raises:
            BadInput: there are keys, the name cannot be used, or the folder cannot be written.
        """
        _check_name(name, "name")
        pair = new_keys()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(self._secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(pair.secret + "\n")
            self._public.write_text(f"{pair.public} {name}\n")
        except FileExistsError:
            raise BadInput(
                f"there are keys in {self.path} already; other devices know this one by them: remove {self._secret} "
                "to make new ones"
            ) from None
        except OSError as error:
            raise BadInput(f"cannot write keys to {self.path}: {error.strerror or error}") from error
        return pair.public

    def own(self) -> KeyPair:
        """This device's keys.

        Raises:
            BadInput: there are none, they are damaged, or others may read the secret one.
        """
        try:
            mode = self._secret.stat().st_mode
        except FileNotFoundError:
            raise BadInput(f"there are no keys in {self.path}: make them with 'pac keys new --keys DIR'") from None
        except OSError as error:
            raise BadInput(f"cannot read {self._secret}: {error.strerror or error}") from error
        if mode & 0o077:
            raise BadInput(f"others may read {self._secret}: run 'chmod 600 {self._secret}'")
        return KeyPair(self.name_and_key()[1], _read_key(self._secret)[0])

    def name_and_key(self) -> tuple[str, str]:
        """This device's name and public key.

        Raises:
            BadInput: there are none, or they are damaged.
        """
        if not self._public.is_file():
            raise BadInput(f"there are no keys in {self.path}: make them with 'pac keys new --keys DIR'")
        key, name = _read_key(self._public)
        return name, key

    def allow(self, key: str, name: str, cluster: str) -> None:
        """Put a device on a cluster's allow-list, in the place of one of the same name.

        Raises:
            BadInput: the key is none, a name cannot be used, or the folder cannot be written.
        """
        _check_name(name, "name")
        folder = self._allowed(cluster)
        if not _KEY.fullmatch(key):
            raise BadInput(
                f"'{key}' is no public key: one has 40 characters, and is in the file device.pub of its device"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / f"{name}.pub").write_text(f"{key} {name}\n")
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror or error}") from error

    def allowed(self, cluster: str) -> dict[str, str]:
        """Names of the devices on a cluster's allow-list, by public key; empty if there is no such list.

        Raises:
            BadInput: a file of the list is damaged.
        """
        return {_read_key(file)[0]: file.stem for file in sorted(self._allowed(cluster).glob("*.pub"))}

    def clusters(self) -> list[str]:
        """Clusters that have an allow-list."""
        return sorted(p.name for p in (self.path / "allowed").glob("*") if p.is_dir())

    @property
    def _secret(self) -> Path:
        return self.path / "device.secret"

    @property
    def _public(self) -> Path:
        return self.path / "device.pub"

    def _allowed(self, cluster: str) -> Path:
        _check_name(cluster, "cluster")
        return self.path / "allowed" / cluster


def default_folder() -> Path:
    """``$PAC_KEYS_DIR``, else ``$XDG_CONFIG_HOME/pac/keys``, else ``~/.config/pac/keys``."""
    own = os.environ.get("PAC_KEYS_DIR")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CONFIG_HOME")
    return (Path(shared) if shared else Path.home() / ".config") / "pac" / "keys"


def read_public(path: Path) -> tuple[str, str]:
    """The key and the name in a ``device.pub`` file.

    Raises:
        BadInput: it is no such file.
    """
    return _read_key(path)


def _read_key(path: Path) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            words = file.read(_MOST_BYTES).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"cannot read a key from {path}: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from error
    if not words or not _KEY.fullmatch(words[0]):
        raise BadInput(f"{path} holds no key: its first word must be 40 characters long")
    return words[0], words[1] if len(words) > 1 else path.stem


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadInput(f"{what} '{name}' cannot be used: letters, digits, '.', '-' and '_' only, 64 at most")
