"""The devices of a home cluster, as ``cluster.yaml`` names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from pac_core.addresses import interface_address, split_address
from pac_core.control import MOST_THREADS
from pac_core.errors import BadInput
from pac_core.keys import default_folder
from pac_core.planning.cards import CARDS
from pac_core.settings import Part, explain, read_yaml

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def _bytes(value: Any) -> Any:
    """A number of bytes, which may be written as in 3GB or 512MiB."""
    if not isinstance(value, str):
        return value
    number = value.strip().rstrip("KMGTIBkmgtib")
    unit = value.strip()[len(number) :].upper()
    try:
        return int(float(number) * (_UNITS[unit] if unit else 1))
    except (KeyError, ValueError, OverflowError):
        raise ValueError("it is no number of bytes, such as 3GB or 512MiB") from None


Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]


class ClusterDevice(Part):
    """A device that takes part, and what is to be taken as given of it instead of measured."""

    name: str = Field(min_length=1)
    """Its name on the leader's allow-list."""
    address: str | None = None
    """Where it listens for the other devices, tcp://HOST:PORT; a free port that it chooses if left out."""
    threads: int | None = Field(default=None, gt=0, le=MOST_THREADS)
    """Threads that it computes with; its cores if left out."""
    card: str | None = None
    """What kind of device it is, such as jetson-nano; see `pac_core.planning.cards`."""
    memory: Bytes | None = None
    """Most bytes that a run may take there, as in 3GB; what is free, or its card's, if left out."""
    speed: float | None = Field(default=None, ge=1e-6, le=1e9)
    """Its speed in GFLOP/s; measured, or its card's, if left out."""

    @field_validator("card")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in CARDS:
            raise ValueError(f"there is no such card; known: {', '.join(CARDS)}")
        return value

    @field_validator("address")
    @classmethod
    def _checked(cls, value: str | None) -> str | None:
        return None if value is None else _checked_address(value)


class LinkSpeed(Part):
    """A link, in both directions."""

    mbit: float = Field(ge=0.001, le=1e9)
    """Mbit/s."""
    latency_ms: float = Field(default=1.0, ge=0, le=1e6)
    """Milliseconds until a message arrives."""


class LinkBetween(LinkSpeed):
    """The link between two devices."""

    between: tuple[str, str]
    """Their names."""


class Cluster(Part):
    """What the leader has to know of a home cluster."""

    leader: str
    """Where the leader listens for workers: tcp://HOST:PORT, with a host that they reach."""
    interface: str | None = None
    """Network card to listen at, such as eth0, where the host of `leader` does not tell."""
    name: str = "home"
    """Name of the cluster, whose allow-list holds."""
    keys: Path | None = None
    """The leader's folder of keys; $PAC_KEYS_DIR, else ~/.config/pac/keys, if left out."""
    transport: str = "zmq"
    """Transport between the devices."""
    devices: tuple[ClusterDevice, ...] = Field(min_length=1)
    """The devices that take part, beside the leader; it may be among them, for its own address or threads."""
    link: LinkSpeed | None = None
    """What links are planned to be that `links` does not have; 100 Mbit/s and 1 ms if left out."""
    links: tuple[LinkBetween, ...] = ()
    """Links between pairs of devices, for planning."""
    shared: bool | None = None
    """Whether all messages share one medium, as over Wi-Fi, for planning; false if left out."""
    discovery: Literal["none", "mdns"] = "none"
    """mdns announces the leader in the local network, for workers that are started with --discover."""
    wait: float = Field(default=60.0, gt=0, le=86400)
    """Seconds to wait for workers that are not there yet."""

    @field_validator("leader")
    @classmethod
    def _checked(cls, value: str) -> str:
        return _checked_address(value)

    @model_validator(mode="after")
    def _different(self) -> Self:
        names = [device.name for device in self.devices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"device '{twice[0]}' is there twice")
        pairs = [frozenset(link.between) for link in self.links]
        wrong = [" and ".join(link.between) for link, pair in zip(self.links, pairs) if len(pair) < 2]
        wrong += [" and ".join(sorted(pair)) for pair in pairs if pairs.count(pair) > 1]
        if wrong:
            raise ValueError(f"links: {wrong[0]}: give a link once, between two devices")
        places = [self.leader, *(device.address for device in self.devices if device.address is not None)]
        shared = sorted({place for place in places if places.count(place) > 1})
        if shared:
            raise ValueError(f"address {shared[0]} is there twice; each listener needs a port of its own")
        return self

    def workers(self, leader: str) -> tuple[ClusterDevice, ...]:
        """The devices beside the one of the name ``leader``, in the order of their ranks from 1.

        Raises:
            BadInput: there are none.
        """
        found = tuple(device for device in self.devices if device.name != leader)
        if not found:
            raise BadInput(f"cluster '{self.name}' has no device beside this one, '{leader}'; add workers to its file")
        return found

    def without(self, names: Collection[str]) -> Self:
        """The same without the devices of these names, and links to them."""
        devices = tuple(device for device in self.devices if device.name not in names)
        links = tuple(link for link in self.links if not {*link.between} & {*names})
        return self.model_copy(update={"devices": devices, "links": links})

    def device(self, name: str) -> ClusterDevice:
        """The device of this name; one without any settings if it is not there, as the leader need not be."""
        return next((device for device in self.devices if device.name == name), ClusterDevice(name=name))

    @property
    def listens_at(self) -> str:
        """Where to listen: the address of the interface, if one is chosen.

        Raises:
            BadInput: there is no such interface.
        """
        if self.interface is None:
            return self.leader
        return f"tcp://{interface_address(self.interface)}:{split_address(self.leader)[1]}"

    @property
    def key_folder(self) -> Path:
        """The leader's folder of keys."""
        return default_folder() if self.keys is None else self.keys.expanduser()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The cluster in a YAML file.

        Raises:
            BadInput: no such file, not YAML, an unknown key (with the nearest known one) or a value that cannot be.
        """
        tree, lines = read_yaml(Path(path), "docs/cluster.md has an example of such a file")
        return cls.build(tree, source=str(path), lines=lines)

    @classmethod
    def build(cls, tree: Mapping[str, Any], *, source: str = "", lines: Mapping[str, int] | None = None) -> Self:
        """The cluster in a nested mapping; errors as in `load`."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise BadInput(explain(error, cls, source, lines or {}, "put it into the cluster file")) from error


def _checked_address(value: str) -> str:
    try:
        host, _ = split_address(value)
    except BadInput as error:
        raise ValueError(str(error)) from None
    if host in ("*", "0.0.0.0", "::"):
        raise ValueError("give the address by which the others reach this device, not that of all its interfaces")
    return value


def is_cluster(devices: str) -> bool:
    """Whether `RunConfig.devices` names a cluster file, and no number of processes."""
    return devices.endswith((".yaml", ".yml"))
