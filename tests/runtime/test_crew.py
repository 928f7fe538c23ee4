"""Where the processes of one machine listen, and the keys that they are given."""

import stat
from pathlib import Path

import pytest

from pac_core.addresses import split_address
from pac_core.keys import KeyFolder
from pac_core.runtime.crew import key_folder, make_peers


def test_without_keys_they_listen_at_socket_files(tmp_path: Path) -> None:
    assert make_peers(tmp_path, 2, None) == [(str(tmp_path / "0"), ""), (str(tmp_path / "1"), "")]
    assert not list(tmp_path.iterdir())


def test_with_keys_each_has_its_own_and_lets_the_others_in(tmp_path: Path) -> None:
    pytest.importorskip("zmq")
    from pac_plugins.transports import new_keys

    peers = make_peers(tmp_path, 3, new_keys)
    places = [split_address(address) for address, _ in peers]
    keys = [key for _, key in peers]
    assert {host for host, _ in places} == {"127.0.0.1"}
    assert len({port for _, port in places}) == len(set(keys)) == 3
    for rank, key in enumerate(keys):
        folder = KeyFolder(key_folder(tmp_path, rank))
        assert folder.own().public == key
        assert set(folder.allowed("home")) == set(keys)
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
