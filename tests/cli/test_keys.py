"""``pac keys``: made once, given to others, listed."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pac_core.errors import BadInput
from pac_core.keys import KeyFolder, KeyPair

PUBLIC, OTHER = "0123456789" * 4, "abcdefghij" * 3 + "$[]{}@%#.-"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def make(folder: Path, public: str = PUBLIC) -> KeyFolder:
    keys = KeyFolder(folder)
    keys.make("kitchen", lambda: KeyPair(public, "s" * 40))
    return keys


def test_new_keys_are_made_once_and_the_secret_one_is_private(pac: Any, folder: Path) -> None:
    pytest.importorskip("zmq")
    ended = pac("keys", "new", "--keys", folder, "--name", "kitchen", "--json")
    assert (ended.code, ended.json["name"], ended.json["keys"]) == (0, "kitchen", str(folder))
    assert stat.S_IMODE(os.stat(folder / "device.secret").st_mode) == 0o600
    own = KeyFolder(folder).own()
    assert own.public == ended.json["public"]
    assert own.secret not in ended.out + ended.err + repr(own)
    assert "there are keys" in pac("keys", "new", "--keys", folder).refusal
    assert KeyFolder(folder).own() == own
    public = pac("keys", "new", "--keys", folder / "other")
    assert public.out.strip() == KeyFolder(folder / "other").own().public
    assert "pac keys allow" in public.err


def test_keys_that_are_made_are_a_pair(folder: Path) -> None:
    zmq = pytest.importorskip("zmq")
    from pac_plugins.transports import new_keys

    made = [new_keys() for _ in range(3)]
    assert len({pair.secret for pair in made}) == 3
    for pair in made:
        assert zmq.curve_public(pair.secret.encode()).decode() == pair.public


def test_a_device_is_allowed_by_file_or_by_key(pac: Any, folder: Path, tmp_path: Path) -> None:
    make(folder)
    file = tmp_path / "laptop.pub"
    file.write_text(f"{OTHER} laptop\n")
    assert pac("keys", "allow", file, "--keys", folder, "--json").json["name"] == "laptop"
    assert pac("keys", "allow", OTHER, "--name", "guest", "--cluster", "office", "--keys", folder).code == 0
    assert KeyFolder(folder).allowed("home") == {OTHER: "laptop"}
    assert KeyFolder(folder).allowed("office") == {OTHER: "guest"}
    assert KeyFolder(folder).allowed("nobody") == {}
    listed = pac("keys", "list", "--keys", folder, "--json").json
    assert listed == {
        "keys": str(folder),
        "name": "kitchen",
        "public": PUBLIC,
        "allowed": {"home": {"laptop": OTHER}, "office": {"guest": OTHER}},
    }
    shown = pac("keys", "list", "--keys", folder).out
    assert PUBLIC in shown
    assert OTHER in shown
    assert "sss" not in shown


def test_the_folder_is_that_of_the_environment(pac: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder)
    monkeypatch.setenv("PAC_KEYS_DIR", str(folder))
    assert pac("keys", "list", "--json").json["public"] == PUBLIC


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["allow", "short", "--name", "x"], "'short' is no public key"),
        (["allow", OTHER], "needs a name"),
        (["allow", OTHER, "--name", "../x"], "name '../x'"),
        (["allow", OTHER, "--name", "x", "--cluster", "a/b"], "cluster 'a/b'"),
        (["new", "--transport", "local", "--name", "x"], "uses no keys"),
        (["new", "--transport", "zmk", "--name", "x"], "did you mean 'zmq'"),
        (["list"], "there are no keys in"),
    ],
)
def test_what_cannot_be_used_is_refused(pac: Any, tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in pac("keys", *arguments, "--keys", tmp_path / "none").refusal


def test_damaged_or_readable_keys_are_refused(pac: Any, folder: Path, tmp_path: Path) -> None:
    keys = make(folder)
    (folder / "device.secret").chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600"):
        keys.own()
    (folder / "device.secret").chmod(0o600)
    (folder / "device.secret").write_text("nonsense\n")
    with pytest.raises(BadInput, match="holds no key"):
        keys.own()
    (folder / "device.pub").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot read a key"):
        keys.own()
    bad = tmp_path / "bad.pub"
    bad.write_text("x\n")
    assert "holds no key" in pac("keys", "allow", bad, "--keys", folder).refusal
