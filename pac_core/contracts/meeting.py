"""The meeting contract: where a leader and its workers find each other, before and beside a run.

A transport whose devices may be started by hand offers it beside its factory: ``factory.host_meeting`` for the leader
and ``factory.join_meeting`` for a worker, both ``(options: MeetingOptions) -> Meeting``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

MESSAGE_BYTES = 1 << 20
"""Most bytes of a message."""

_MEMBERS = 4096


@dataclass(frozen=True)
class MeetingOptions:
    """What both ends are given.

    Attributes:
        addresses: of a leader the one where it listens; of a worker those of the leaders that it is to work for.
        keys: folder made by ``pac keys new``.
        cluster: whose allow-list in that folder says who may be met.
        discovery: announce the leader in the local network, or find leaders there.
        interface: IPv4 address of the network card that discovery is to use; all cards if empty.
        silence: seconds without a sign of life after which the other end counts as gone.
    """

    addresses: Sequence[str]
    keys: Path
    cluster: str = "home"
    discovery: bool = False
    interface: str = ""
    silence: float = 10.0


@dataclass(frozen=True)
class Came:
    """Somebody is there, and may be written to.

    Attributes:
        who: name to use in `Meeting.send`: of a worker that on the allow-list, of a leader its address.
        name: on the allow-list.
    """

    who: str
    name: str


@dataclass(frozen=True)
class Said:
    """A message has come."""

    who: str
    message: Mapping[str, Any]


@dataclass(frozen=True)
class Left:
    """Somebody is gone, and why. A worker is told so once it had been told that its leader came."""

    who: str
    reason: str


Event = Came | Said | Left


class Meeting(ABC):
    """One end of the connections between a leader and its workers. For one thread.

    Both ends authenticate: whoever has a key that is not on the allow-list of the cluster is not let in, gets nothing,
    and is logged. Messages are encrypted, arrive whole and in order, are at most `MESSAGE_BYTES` long, and are mappings
    of what msgpack can hold; nothing is unpickled. The other end is trusted no further than that: one that sends what
    is no such mapping has left.

    A worker's end goes on dialling while no leader is there, and after one has left. A leader lets in one worker for
    each key; a second one with the same key is told so, and may try again.

    The factories raise `BadInput` for options that cannot be used: no keys, an address that is in use or none.
    """

    @abstractmethod
    def receive(self, seconds: float) -> list[Event]:
        """What has happened, in order; waits for so long at most if nothing has.

        Raises:
            Refused: at a worker: a leader does not let its key in, or what listens there has no key that the worker
                allows.
        """

    @abstractmethod
    def send(self, who: str, message: Mapping[str, Any]) -> bool:
        """Send without waiting; False if it cannot be sent, because ``who`` is gone or does not read."""

    @abstractmethod
    def key_of(self, who: str) -> str:
        """The public key that ``who``, who has come, has proved to have."""

    @abstractmethod
    def close(self, seconds: float) -> None:
        """Send what was to be sent, for so long at most, and release everything. Closing twice is fine."""


def pack_message(message: Mapping[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        ValueError: it is too long.
    """
    packed = bytes(msgpack.packb(dict(message)))
    if len(packed) > MESSAGE_BYTES:
        raise ValueError(f"a message of {len(packed)} bytes is too long")
    return packed


def unpack_message(data: bytes | memoryview) -> dict[str, Any]:
    """The message in ``data``; takes memory for what is there, not for what it claims to hold.

    Raises:
        ValueError: it holds none.
    """
    if memoryview(data).nbytes > MESSAGE_BYTES:
        raise ValueError("a message is too long")
    try:
        found = msgpack.unpackb(data, max_array_len=_MEMBERS, max_map_len=_MEMBERS, ext_hook=_refuse)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"a message cannot be read ({type(error).__name__})") from None
    if type(found) is not dict or not all(type(key) is str for key in found):
        raise ValueError("a message is no mapping of names")
    return found


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")
