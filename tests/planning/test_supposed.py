"""What if: changes of a cluster."""

from typing import Any

import pytest

from pac_core.contracts.cluster import Cluster, DeviceProfile, Link
from pac_core.errors import BadInput
from pac_core.planning.cards import CARDS
from pac_core.planning.supposed import Change, supposed

HOME = Cluster(
    (DeviceProfile("desk", 2e10, 1 << 30), DeviceProfile("pi", 1e10, 1 << 30)),
    {("desk", "pi"): Link(5e7, 2e-3)},
    Link(1e8, 1e-3),
    shared=True,
)


def changed(**given: Any) -> Cluster:
    return supposed(HOME, Change(**given))


def test_devices_come_and_go() -> None:
    assert changed(added=["b=h200"]).devices == (*HOME.devices, CARDS["h200"].device("b"))
    assert changed(removed=["desk"]).devices == HOME.devices[1:]
    assert changed(removed=["pi"], added=["pi=laptop"]).devices == (HOME.devices[0], CARDS["laptop"].device("pi"))
    assert changed(removed=["desk"]).shared


def test_links_change_their_speed_and_keep_their_latency() -> None:
    assert changed(links=["pi:desk=1000"]).link("desk", "pi") == Link(1e9, 2e-3)
    faster = changed(mbit=300.0, added=["b=h200"])
    assert faster.link("desk", "pi") == Link(3e8, 2e-3)
    assert faster.link("desk", "b") == Link(3e8, 1e-3)
    both = changed(mbit=300.0, links=["b:pi=20"], added=["b=h200"])
    assert (both.link("pi", "b"), both.link("desk", "b")) == (Link(2e7, 1e-3), Link(3e8, 1e-3))
    assert HOME.link("desk", "pi") == Link(5e7, 2e-3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"added": ["b"]}, "--add b: write it as NAME=CARD"),
        ({"added": ["=h200"]}, "write it as NAME=CARD"),
        ({"added": ["b=abacus"]}, "device card 'abacus' is not known; known: jetson-nano"),
        ({"added": ["pi=h200"]}, "--add pi=h200: the cluster has a device 'pi'; choose another name"),
        ({"added": ["b=h200", "b=laptop"]}, "the cluster has a device 'b'"),
        ({"removed": ["b"]}, "--remove b: the cluster has no such device; it has desk, pi"),
        ({"removed": ["desk", "pi"]}, "no device is left"),
        ({"links": ["desk:pi"]}, "--link desk:pi: write it as A:B=MBIT"),
        ({"links": ["desk:pi=fast"]}, "write it as A:B=MBIT, as in --link desk:kitchen=1000"),
        ({"links": ["desk:pi=-1"]}, "write it as A:B=MBIT"),
        ({"links": ["desk:pi=nan"]}, "write it as A:B=MBIT"),
        ({"links": ["desk:pi=inf"]}, "write it as A:B=MBIT"),
        ({"links": ["desk=10"]}, "write it as A:B=MBIT"),
        ({"links": ["desk:b=10"]}, "--link desk:b=10: the cluster has no device 'b'; it has desk, pi"),
        ({"links": ["pi:pi=10"]}, "a link is between two devices"),
    ],
    ids=str,
)
def test_what_cannot_be_supposed_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        changed(**given)
