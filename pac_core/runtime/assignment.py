"""What a device needs to know to take part in a run, and how it connects with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pac_core.control import Purpose, own_version
from pac_core.registry import Registry

CONNECT_SECONDS = 86400.0
"""How long devices may take to connect: the leader reads its data first. One that is gone ends the job before."""

SILENCE_SECONDS = 60.0
"""`Assignment.silence` between machines."""


@dataclass(frozen=True)
class Assignment:
    """A device's part in a job.

    Attributes:
        job: its name.
        config: `RunConfig.plain`.
        rank: number of the device.
        peers: address and public key of every device, by rank.
        transport: registered name.
        keys: this device's folder of keys.
        cluster: whose allow-list holds.
        threads: for computing.
        blocked: plugins to leave out.
        silence: seconds without a sign of life over the data transport after which a device counts as lost.
        folder: with files of the run, which go with whoever started the device's process; empty for none.
        purpose: what the job is for.
    """

    job: str
    config: Mapping[str, Any]
    rank: int
    peers: Sequence[Sequence[str]]
    transport: str
    keys: str
    cluster: str
    threads: int
    blocked: Sequence[str] = ()
    silence: float = SILENCE_SECONDS
    folder: str = ""
    purpose: Purpose = "train"


def connect(assignment: Assignment, registry: Registry, seconds: float = CONNECT_SECONDS) -> Any:
    """The `Transport` between the devices of a job, once all are there, which may take so many seconds.

    Raises:
        UnknownPlugin, BadInput, Refused, TransportTimeout: as the transport contract says.
    """
    from pac_core.contracts.transport import Peer, TransportOptions  # imports torch, which a worker that waits spares

    options = TransportOptions(
        rank=assignment.rank,
        peers=[Peer(address, key) for address, key in assignment.peers],
        terms={"pac": own_version(), "job": assignment.job},
        keys=Path(assignment.keys),
        cluster=assignment.cluster,
        timeout=seconds,
        silence=assignment.silence,
    )
    return registry.get("transports", assignment.transport)(options)
