"""``profile.json``: what `pac profile` has measured, for planners and the simulator."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pac_core.contracts.cluster import AS_WRITTEN, Amount, Cluster, DeviceProfile, Job, Link, Profile
from pac_core.errors import BadInput
from pac_core.files import read_json, write_json

SCHEMA = 1
"""Goes up when older files can no longer be read."""

MEASURED = ("pac-core", "torch", "transformers", "numpy")
"""Distributions whose versions stand in the file."""

DAMAGED = "make it again with pac profile"


@dataclass(frozen=True)
class Point:
    """One measurement: rows of a micro-batch, tokens of each, and the seconds that a pass through one layer took."""

    __pydantic_config__ = AS_WRITTEN

    rows: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    seconds: Amount


@dataclass(frozen=True)
class FittedPass:
    """How well a pace agrees with what it was fitted to.

    Attributes:
        stream: whose layers; that of the last layer for the head.
        name: of the pass, as in ``"backbone"`` or ``"side forward"``.
        median_error, largest_error: relative, over the points.
        points: what was measured.
    """

    __pydantic_config__ = AS_WRITTEN

    stream: str
    name: str
    median_error: Amount
    largest_error: Amount
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ProfileFile:
    """A measured profile.

    Attributes:
        model: folder or hub id of the backbone.
        profile: costs of its layers.
        cluster: the devices, the leader first, and the links between them.
        job: the work that it was made for; None if that was left open.
        fits: by device what was measured, and the errors of what was fitted to it.
        versions: of Python and the distributions that matter, at the leader.
    """

    model: str
    profile: Profile
    cluster: Cluster
    job: Job | None = None
    fits: Mapping[str, tuple[FittedPass, ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The profile as it stands in the file."""
        cluster = self.cluster
        return {
            "schema": SCHEMA,
            "model": self.model,
            "versions": dict(self.versions),
            "profile": asdict(self.profile),
            "devices": [asdict(device) for device in cluster.devices],
            "links": [{"between": list(pair), **asdict(link)} for pair, link in cluster.links.items()],
            "default_link": asdict(cluster.default),
            "shared": cluster.shared,
            "job": None if self.job is None else asdict(self.job),
            "fits": {name: [asdict(one) for one in fitted] for name, fitted in self.fits.items()},
        }


@dataclass(frozen=True)
class _Between:
    """A link as it stands in the file."""

    __pydantic_config__ = AS_WRITTEN

    between: tuple[str, str]
    bits_per_second: Annotated[float, Field(gt=0)]
    latency_s: Amount


@dataclass(frozen=True)
class _Stored:
    """The file's fields."""

    __pydantic_config__ = AS_WRITTEN

    schema: Literal[1]
    model: str
    versions: Mapping[str, str]
    profile: Profile
    devices: Annotated[tuple[DeviceProfile, ...], Field(min_length=1)]
    links: tuple[_Between, ...]
    default_link: Link
    shared: bool
    job: Job | None
    fits: Mapping[str, tuple[FittedPass, ...]]


def write_profile(path: Path, found: ProfileFile) -> None:
    """Write a profile, atomically.

    Raises:
        RunFailed: the file cannot be written.
    """
    write_json(path, found.to_json())


def read_profile(path: Path) -> ProfileFile:
    """The profile in a file that `write_profile` wrote.

    Raises:
        BadInput: there is none, or a field of it is damaged, which is named.
    """
    given = read_json(path, "a profile made by pac profile")
    if isinstance(given, dict) and given.get("schema") not in (None, SCHEMA):
        raise BadInput(f"{path}: schema {given['schema']!r} is not known, this version reads {SCHEMA}; {DAMAGED}")
    try:
        stored = TypeAdapter(_Stored).validate_json(json.dumps(given))  # in JSON alone a list may be a tuple
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the profile"
        raise BadInput(f"{path}: {where}: {first['msg'].lower()}; {DAMAGED}") from None
    _check(path, stored)
    links = {link.between: Link(link.bits_per_second, link.latency_s) for link in stored.links}
    cluster = Cluster(stored.devices, links, stored.default_link, stored.shared)
    return ProfileFile(stored.model, stored.profile, cluster, stored.job, stored.fits, stored.versions)


def versions_here() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in MEASURED}}


def _check(path: Path, stored: _Stored) -> None:
    """What fields say of each other."""
    names = [device.name for device in stored.devices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{path}: devices: '{twice[0]}' is there twice; {DAMAGED}")
    for number, link in enumerate(stored.links):
        strange = [name for name in link.between if name not in names]
        if strange:
            raise BadInput(f"{path}: links.{number}: there is no device '{strange[0]}'; {DAMAGED}")
    empty = [stream for stream, layers in stored.profile.layers.items() if not layers]
    if empty or not stored.profile.layers:
        raise BadInput(f"{path}: profile.layers: {empty[0] if empty else 'no stream'} has no layer; {DAMAGED}")
    for number, device in enumerate(stored.devices):
        measured = {paces.stream for paces in device.paces.streams} if device.paces else set(stored.profile.layers)
        lacking = sorted(set(stored.profile.layers) - measured)
        if lacking:
            raise BadInput(f"{path}: devices.{number}.paces: stream '{lacking[0]}' was not measured; {DAMAGED}")
