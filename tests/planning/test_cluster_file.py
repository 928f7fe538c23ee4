"""Cluster files as clusters to plan for: what is given, what was measured, what a card says."""

from pathlib import Path
from typing import Any

import pytest

from pac_core.cluster import Cluster as ClusterFile
from pac_core.cluster import ClusterDevice
from pac_core.contracts.cluster import Cluster, DeviceProfile, Link
from pac_core.errors import BadInput
from pac_core.planning.cards import CARDS
from pac_core.planning.cluster_file import NO_MEASURES, as_given, cluster_to_plan
from pac_core.planning.make import FAR

MEASURED = Cluster(
    (DeviceProfile("desk", 5e10, 4 << 30, layer_s=1e-4), DeviceProfile("pi", 1e10, 1 << 30)),
    {("desk", "pi"): Link(9e7, 3e-3), ("desk", "elsewhere"): Link(1e6, 1.0)},
    shared=True,
)


def planned(devices: list[dict[str, Any]], measured: Cluster = NO_MEASURES, **more: Any) -> Cluster:
    file = ClusterFile.build({"leader": "tcp://10.0.0.1:7077", "devices": devices, **more})
    return cluster_to_plan(file, measured)


def test_a_card_gives_speed_and_memory_of_a_device_that_is_not_there() -> None:
    found = planned([{"name": "a", "card": "jetson-nano"}, {"name": "b", "card": "jetson-nano", "memory": "1GB"}])
    nano = CARDS["jetson-nano"]
    assert found.devices[0] == nano.device("a")
    assert (found.devices[1].flops, found.devices[1].memory_bytes) == (nano.device("b").flops, 10**9)
    assert found.link("a", "b") == FAR
    assert not found.shared


def test_speed_wins_over_what_was_measured_and_that_over_the_card() -> None:
    devices = [
        {"name": "desk", "card": "h200", "speed": 12.5},
        {"name": "pi", "card": "h200"},
        {"name": "new", "card": "h200"},
    ]
    desk, pi, new = planned(devices, MEASURED).devices
    assert desk == DeviceProfile("desk", 12.5e9, 4 << 30)
    assert pi == MEASURED.devices[1]
    assert new == CARDS["h200"].device("new")


def test_links_of_the_file_win_over_measured_ones() -> None:
    devices = [{"name": "desk"}, {"name": "pi"}, {"name": "new", "card": "laptop"}]
    found = planned(devices, MEASURED)
    assert found.link("pi", "desk") == Link(9e7, 3e-3)
    assert found.link("new", "desk") == FAR
    assert found.shared
    links = [{"between": ["pi", "desk"], "mbit": 1000, "latency_ms": 0.5}]
    found = planned(devices, MEASURED, links=links, link={"mbit": 10}, shared=False)
    assert found.link("desk", "pi") == Link(1e9, 5e-4)
    assert found.link("new", "desk") == Link(1e7, 1e-3)
    assert not found.shared


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ({"name": "a"}, r"device 'a': nothing says how fast it is; run pac profile .* card: NAME .* jetson-nano"),
        ({"name": "a", "memory": "1GB"}, r"device 'a': nothing says how fast it is"),
        ({"name": "a", "speed": 10}, r"device 'a': nothing says how much memory it has; put memory: or card:"),
    ],
)
def test_what_is_not_known_is_asked_for(device: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        planned([device])


def test_a_link_to_nobody_is_refused() -> None:
    with pytest.raises(BadInput, match="links: cluster 'home' has no device 'b'; it has a"):
        planned([{"name": "a", "card": "laptop"}], links=[{"between": ["a", "b"], "mbit": 1}])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "devices: [{name: a, card: abacus}]",
            r"devices\.0\.card = 'abacus': there is no such card; known: jetson-nano",
        ),
        ("links: [{between: [a, a], mbit: 1}]", "links: a and a: give a link once, between two devices"),
        (
            "links: [{between: [a, b], mbit: 1}, {between: [b, a], mbit: 2}]",
            "links: a and b: give a link once, between two devices",
        ),
        ("links: [{between: [a], mbit: 1}]", r"links\.0\.between"),
        ("link: {mbit: 0}", r"cluster\.yaml:\d: link\.mbit = 0"),
        ("link: {mbit: 3, mbits: 3}", r"'link\.mbits' is not a key of the configuration; did you mean 'mbit'\?"),
    ],
)
def test_what_a_file_may_not_say(given: str, told: str, tmp_path: Path) -> None:
    devices = "" if given.startswith("devices") else "devices: [{name: a}, {name: b}]\n"
    (tmp_path / "cluster.yaml").write_text(f"leader: tcp://10.0.0.1:7077\n{devices}{given}\n")
    with pytest.raises(BadInput, match=told) as caught:
        ClusterFile.load(tmp_path / "cluster.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_takes_the_speed_of_a_card_and_no_more_memory_than_there_is() -> None:
    found, nano = DeviceProfile("a", 7e9, 5 * 10**8), CARDS["jetson-nano"].device("a")

    def given(**more: Any) -> DeviceProfile:
        return as_given(ClusterDevice(name="a", **more), found)

    assert given() == found
    assert given(memory="3GB") == found  # which is in what was found already
    assert (given(card="jetson-nano").flops, given(card="jetson-nano").memory_bytes) == (nano.flops, 5 * 10**8)
    assert given(card="jetson-nano", speed=7).flops == 7e9
    larger = DeviceProfile("a", 7e9, 64 << 30)
    assert as_given(ClusterDevice(name="a", card="jetson-nano"), larger) == nano
    assert as_given(ClusterDevice(name="a", card="jetson-nano", memory="64GiB"), larger).memory_bytes == 64 << 30
