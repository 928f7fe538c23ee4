"""A leader is found in the local network by those that know its key."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("zmq")
pytest.importorskip("zeroconf")

from pac_core.addresses import free_port, join_address
from pac_core.contracts.meeting import Came, MeetingOptions
from pac_core.errors import BadInput
from pac_core.keys import KeyFolder
from pac_plugins.transports import host_zmq, join_zmq, new_keys
from pac_plugins.transports.mdns import Browser, announce, fingerprint

HOST = "127.0.0.1"
KEY, OTHER = "k" * 40, "o" * 40


def found(browser: Browser, keys: dict[str, str], seconds: float) -> list[str]:
    until = time.monotonic() + seconds
    while not browser.found(keys) and time.monotonic() < until:
        time.sleep(0.05)
    return browser.found(keys)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Skips where the loopback interface has no multicast."""
    with ExitStack() as closing:
        try:
            probe = Browser("probe", HOST)
            closing.callback(probe.close)
            closing.enter_context(announce("probe", join_address(HOST, 7), KEY, HOST))
        except BadInput as error:
            pytest.skip(f"no multicast here: {error}")
        if not found(probe, {KEY: "desk"}, 5):
            pytest.skip("no multicast here: what is announced is not heard")
        yield closing


def test_a_leader_is_found_by_its_cluster_and_key(stack: ExitStack) -> None:
    address = join_address(HOST, 7077)
    stack.enter_context(announce("home", address, KEY, HOST))
    for cluster, key, expected in (("home", KEY, [address]), ("home", OTHER, []), ("office", KEY, [])):
        browser = Browser(cluster, HOST)
        stack.callback(browser.close)
        assert found(browser, {key: "desk"}, 5 if expected else 1.5) == expected


def test_the_record_tells_name_port_and_fingerprint_alone(stack: ExitStack) -> None:
    from zeroconf import ServiceBrowser, Zeroconf

    from pac_plugins.transports.mdns import TYPE

    stack.enter_context(announce("home", join_address(HOST, 7077), KEY, HOST))
    infos = []

    def note(zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:
        if name.startswith("home-"):
            infos.append(zeroconf.get_service_info(service_type, name, 2000))

    with Zeroconf(interfaces=[HOST]) as network:
        ServiceBrowser(network, TYPE, handlers=[note])
        until = time.monotonic() + 5
        while not infos and time.monotonic() < until:
            time.sleep(0.05)
    (info,) = infos
    assert info is not None
    assert info.name == f"home-{fingerprint(KEY)}.{TYPE}"
    assert info.port == 7077
    assert info.properties == {b"key": fingerprint(KEY).encode(), b"cluster": b"home"}
    assert len(fingerprint(KEY)) == 16
    assert fingerprint(KEY) != fingerprint(OTHER)


def test_a_worker_needs_no_address(stack: ExitStack, tmp_path: Path) -> None:
    folders = [KeyFolder(tmp_path / name) for name in ("desk", "kitchen")]
    keys = [folder.make("device", new_keys) for folder in folders]
    for folder in folders:
        for name, key in zip(("desk", "kitchen"), keys):
            folder.allow(key, name, "home")
    address = join_address(HOST, free_port(HOST))
    options = {"discovery": True, "interface": HOST}
    host = host_zmq(MeetingOptions([address], folders[0].path, **options))  # type: ignore[arg-type]
    worker = join_zmq(MeetingOptions([], folders[1].path, **options))  # type: ignore[arg-type]
    try:
        came, until = [], time.monotonic() + 10
        while not came and time.monotonic() < until:
            came = worker.receive(0.1)
            host.receive(0.05)
        assert came == [Came(address, "desk")]
    finally:
        worker.close(0.1)
        host.close(0.1)
