"""From a cluster file, a measured profile and device cards to a cluster to plan for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pac_core.cluster import Cluster as ClusterFile
from pac_core.cluster import ClusterDevice, LinkSpeed
from pac_core.contracts.cluster import Cluster, DeviceProfile, Link
from pac_core.errors import BadInput
from pac_core.planning.cards import CARDS, card
from pac_core.planning.make import FAR

NO_MEASURES = Cluster(())


def cluster_to_plan(file: ClusterFile, measured: Cluster = NO_MEASURES) -> Cluster:
    """The devices of a cluster file, none of which need be there; the first is taken to lead.

    What the file says of speed, memory and links wins over what was measured, and that over cards.

    Args:
        measured: devices and links, as `pac profile` found them.

    Raises:
        BadInput: nothing says how fast a device is or how much memory it has, or a link leads to none.
    """
    found = {device.name: device for device in measured.devices}
    devices = tuple(_device(device, found.get(device.name)) for device in file.devices)
    return linked(file, devices, measured)


def linked(file: ClusterFile, devices: Sequence[DeviceProfile], measured: Cluster = NO_MEASURES) -> Cluster:
    """``devices`` with the links between them that the file gives or were measured.

    Raises:
        BadInput: a link leads to a device that is not there.
    """
    names = [device.name for device in devices]
    strange = [name for link in file.links for name in link.between if name not in names]
    if strange:
        raise BadInput(f"links: cluster '{file.name}' has no device '{strange[0]}'; it has {', '.join(names)}")
    links = {frozenset(pair): link for pair, link in measured.links.items() if {*pair} <= {*names}}
    links |= {frozenset(link.between): _link(link) for link in file.links}
    return Cluster(
        tuple(devices),
        {(min(pair), max(pair)): link for pair, link in links.items()},
        FAR if file.link is None else _link(file.link),
        bool(measured.shared if file.shared is None else file.shared),
    )


def as_given(device: ClusterDevice, found: DeviceProfile) -> DeviceProfile:
    """``found`` of a device that is there, as the file says to take it: with its card's speed unless that is given, and
    with no more memory than a device of its kind has unless that is given."""
    if device.card is None:
        return found
    usual = card(device.card).device(device.name)
    memory = found.memory_bytes if device.memory else min(found.memory_bytes, usual.memory_bytes)
    return replace(found if device.speed else usual, memory_bytes=memory)


def _device(device: ClusterDevice, measured: DeviceProfile | None) -> DeviceProfile:
    usual = None if device.card is None else card(device.card).device(device.name)
    known = measured or usual
    if device.speed is not None:
        memory = device.memory or (0 if known is None else known.memory_bytes)
        known = DeviceProfile(device.name, device.speed * 1e9, memory)
    if known is None:
        raise BadInput(
            f"device '{device.name}': nothing says how fast it is; run pac profile and give its file as --profile, or "
            f"put card: NAME into the cluster file, one of {', '.join(CARDS)}"
        )
    if not (device.memory or known.memory_bytes):
        raise BadInput(
            f"device '{device.name}': nothing says how much memory it has; put memory: or card: beside speed:"
        )
    return replace(known, memory_bytes=device.memory or known.memory_bytes)


def _link(given: LinkSpeed) -> Link:
    return Link(given.mbit * 1e6, given.latency_ms / 1e3)
