"""Cluster files: what they may say, and one line for what they may not."""

import socket
from pathlib import Path
from typing import Any

import pytest

from pac_core.addresses import free_port, interface_address, interfaces, join_address, own_address, split_address
from pac_core.cluster import Cluster, is_cluster
from pac_core.errors import BadInput
from pac_core.keys import default_folder

TEXT = """\
leader: tcp://192.168.1.10:7077
keys: ~/pac-keys
devices:
  - name: desk
    threads: 4
  - name: kitchen
    address: tcp://192.168.1.11:7100
    memory: 1.5GB
    speed: 12.5
"""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def of(text: str) -> Cluster:
        (tmp_path / "cluster.yaml").write_text(text)
        return Cluster.load(tmp_path / "cluster.yaml")

    return of


def test_a_file_says_who_takes_part(load: Any) -> None:
    cluster = load(TEXT)
    assert [device.name for device in cluster.workers("desk")] == ["kitchen"]
    assert [device.name for device in cluster.workers("other")] == ["desk", "kitchen"]
    assert cluster.device("kitchen").memory == 1_500_000_000
    assert cluster.device("desk").threads == 4
    assert cluster.device("nobody").threads is None
    assert cluster.key_folder == Path.home() / "pac-keys"
    assert cluster.listens_at == cluster.leader
    assert load("leader: tcp://a:1\ndevices: [{name: b}]\n").key_folder == default_folder()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("keys:", "keyes:"), r"cluster\.yaml:2: 'keyes' is not a key of the configuration; did you mean 'keys'\?"),
        (
            ("threads: 4", "thread: 4"),
            r"cluster\.yaml:5: 'devices\.0\.thread' is not a key .*; did you mean 'threads'\?",
        ),
        (("threads: 4", "threads: 0"), r"cluster\.yaml:5: devices\.0\.threads = 0: "),
        (("1.5GB", "lots"), r"cluster\.yaml:8: devices\.1\.memory = 'lots': it is no number .*such as 3GB or 512MiB"),
        (("leader: tcp://192.168.1.10:7077", ""), r"cluster\.yaml: 'leader' is not set; put it into the cluster file"),
        (("tcp://192.168.1.10:7077", "192.168.1.10"), r"cluster\.yaml:1: leader = .*must be like tcp://HOST:PORT"),
        (("192.168.1.10:7077", "0.0.0.0:7077"), r"cluster\.yaml:1: leader = .*by which the others reach this device"),
        (("192.168.1.11:7100", "192.168.1.11:71000"), r"cluster\.yaml:7: devices\.1\.address = "),
        (("name: kitchen", "name: desk"), r"^\S*cluster\.yaml: device 'desk' is there twice$"),
        (
            ("threads: 4", "threads: 5000"),
            r"cluster\.yaml:5: devices\.0\.threads = 5000: .* less than or equal to 4096",
        ),
        (
            ("tcp://192.168.1.11:7100", "tcp://192.168.1.10:7077"),
            r"cluster\.yaml: address tcp://192\.168\.1\.10:7077 is there twice; each listener needs a port of its own$",
        ),
        (("devices:", "devices: ["), r"cluster\.yaml:\d+: not valid YAML"),
        (("devices:", "name: a\nname: b\ndevices:"), r"cluster\.yaml:\d+: not valid YAML \('name' is there twice\)"),
        (("devices:", "links: desk\ndevices:"), r"cluster\.yaml:\d: links = 'desk': give a list, as in \[a, b\]"),
        (("devices:", "link: 5\ndevices:"), r"cluster\.yaml:\d: link = 5: give keys with their values, as in"),
        (
            ("devices:", "links: [{mbit: 5, between: [desk]}]\ndevices:"),
            r"cluster\.yaml: 'links\.0\.between\.1' is not set; put it into the cluster file",
        ),
        (
            ("devices:", "links: [{mbit: 5, between: [a, b, c]}]\ndevices:"),
            r"links\.0\.between = \['a', 'b', 'c'\]: the list is too long; give at most 2",
        ),
        (("threads: 4", "speed: 1.0e+300"), r"cluster\.yaml:5: devices\.0\.speed = 1e\+300: .* less than or equal to"),
        (
            ("threads: 4", "speed: 1.0e-300"),
            r"cluster\.yaml:5: devices\.0\.speed = 1e-300: .* greater than or equal to",
        ),
        (("devices:", "link: {mbit: 1.0e+300}\ndevices:"), r"cluster\.yaml:\d: link\.mbit = 1e\+300: .* less than"),
    ],
    ids=str,
)
def test_what_it_may_not_say_is_told_with_its_line(load: Any, change: tuple[str, str], told: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(BadInput, match=told) as failed:
        load(TEXT.replace(*change, 1))
    assert "\n" not in str(failed.value)


def test_a_cluster_has_a_device_beside_the_leader(load: Any) -> None:
    with pytest.raises(BadInput, match="has no device beside this one, 'b'"):
        load("leader: tcp://a:1\ndevices: [{name: b}]\n").workers("b")
    with pytest.raises(BadInput, match=r"none\.yaml: no such file"):
        Cluster.load("none.yaml")


def test_a_file_is_told_from_a_number() -> None:
    assert [is_cluster(text) for text in ("2", "cluster.yaml", "/a/b.yml", "auto")] == [False, True, True, False]


def test_addresses() -> None:
    assert split_address("tcp://desk.local:7077") == ("desk.local", 7077)
    assert split_address(join_address("fe80::1", 7)) == ("fe80::1", 7)
    for wrong in ("desk:7", "tcp://desk", "tcp://desk:0", "tcp://desk:65536", "tcp://de sk:1", "udp://a:1", ""):
        with pytest.raises(BadInput, match=r"tcp://HOST:PORT"):
            split_address(wrong)
    assert own_address("tcp://127.0.0.1:9") == "127.0.0.1"
    assert 0 < free_port("127.0.0.1") < 2**16
    with pytest.raises(BadInput, match=r"cannot listen at '192\.0\.2\.1'"):
        free_port("192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"cannot listen at 'tcp://127\.0\.0\.1:{port}': Address already in use"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(BadInput, match=r"no way to 'nowhere\.invalid'"):
        own_address("tcp://nowhere.invalid:1")


def test_interfaces_have_addresses() -> None:
    (loopback,) = [name for name in interfaces() if name in ("lo", "lo0")]
    assert interface_address(loopback) == "127.0.0.1"
    with pytest.raises(BadInput, match=f"interface 'none0' is not known; this machine has .*{loopback}"):
        interface_address("none0")
