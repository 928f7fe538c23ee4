"""A cluster in which something is supposed to be different: another device, one less, a faster link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pac_core.contracts.cluster import Cluster, DeviceProfile, Link
from pac_core.errors import BadInput
from pac_core.planning.cards import card


@dataclass(frozen=True)
class Change:
    """What is supposed, as the command line spells it.

    Attributes:
        added: ``NAME=CARD`` of devices that come.
        removed: names of devices that go.
        links: ``A:B=MBIT``, speeds of links between two devices.
        mbit: speed of all other links; as it is if None.
    """

    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    links: Sequence[str] = ()
    mbit: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is supposed."""
        return not (self.added or self.removed or self.links or self.mbit)

    def __str__(self) -> str:
        said = [*(f"with {one}" for one in self.added), *(f"without {one}" for one in self.removed)]
        said += [] if self.mbit is None else [f"links of {self.mbit:g} Mbit/s"]
        return ", ".join([*said, *(f"link {one} Mbit/s" for one in self.links)])


def supposed(cluster: Cluster, change: Change) -> Cluster:
    """``cluster`` with a change; links keep their latency.

    Raises:
        BadInput: a device, card or speed that is not known, or no device is left.
    """
    devices = _without(cluster.devices, change.removed)
    for given in change.added:
        devices = (*devices, _added(given, devices))
    if not devices:
        raise BadInput("--remove: no device is left; leave one")
    there = Cluster(devices, cluster.links, cluster.default, cluster.shared)
    if change.mbit is not None:
        links = {pair: _of_speed(link, change.mbit) for pair, link in cluster.links.items()}
        there = replace(there, links=links, default=_of_speed(cluster.default, change.mbit))
    for given in change.links:
        pair, mbit = _between(given, [device.name for device in devices])
        others = {known: link for known, link in there.links.items() if {*known} != {*pair}}
        there = replace(there, links={**others, pair: _of_speed(there.link(*pair), mbit)})
    return there


def _without(devices: tuple[DeviceProfile, ...], removed: Sequence[str]) -> tuple[DeviceProfile, ...]:
    names = [device.name for device in devices]
    strange = [name for name in removed if name not in names]
    if strange:
        raise BadInput(f"--remove {strange[0]}: the cluster has no such device; it has {', '.join(names)}")
    return tuple(device for device in devices if device.name not in removed)


def _added(given: str, devices: Sequence[DeviceProfile]) -> DeviceProfile:
    name, equals, kind = given.partition("=")
    if not (name and equals):
        raise BadInput(f"--add {given}: write it as NAME=CARD, as in --add attic=raspberry-pi-5")
    if name in (device.name for device in devices):
        raise BadInput(f"--add {given}: the cluster has a device '{name}'; choose another name")
    return card(kind).device(name)


def _between(given: str, names: Sequence[str]) -> tuple[tuple[str, str], float]:
    """The two devices of ``A:B=MBIT``, and the speed in Mbit/s."""
    pair, _, speed = given.rpartition("=")
    one, _, other = pair.partition(":")
    try:
        mbit = float(speed)
    except ValueError:
        mbit = 0.0
    if not (one and other and 0.001 <= mbit <= 1e9):
        raise BadInput(f"--link {given}: write it as A:B=MBIT, as in --link desk:kitchen=1000")
    strange = [name for name in (one, other) if name not in names]
    if strange:
        raise BadInput(f"--link {given}: the cluster has no device '{strange[0]}'; it has {', '.join(names)}")
    if one == other:
        raise BadInput(f"--link {given}: a link is between two devices")
    return (one, other), mbit


def _of_speed(link: Link, mbit: float) -> Link:
    return replace(link, bits_per_second=mbit * 1e6)
