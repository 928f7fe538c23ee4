"""The transport contract: how devices talk to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pac_core.contracts import ring
from pac_core.contracts.message import Message, Tag, Work

CLOSED = "it closed its transport"
"""Why a peer is lost that ended by itself, whatever made it do so."""


@dataclass(frozen=True)
class Peer:
    """One device of a job.

    Attributes:
        address: where it listens: ``tcp://HOST:PORT`` for ``zmq``, the path of a socket file for ``local``.
        key: its public key, 40 characters of Z85, for transports that authenticate; else empty.
    """

    address: str
    key: str = ""


@dataclass(frozen=True)
class TransportOptions:
    """What a transport's factory is given.

    Attributes:
        rank: this device's number; None where a launcher says it (``torch`` under ``torchrun``).
        peers: every device of the job, this one too, by rank; empty where a launcher knows them.
        terms: what all devices must agree on, such as ``{"pac": version, "model": fingerprint, "job": name}``. A device
            with other terms is refused when it connects, and told which one differs.
        keys: folder made by ``pac keys new``, for transports that authenticate.
        cluster: whose allow-list in that folder holds.
        timeout: seconds that anything waits unless told otherwise: connecting, sends, receives, collectives.
        silence: seconds without a sign of life after which a peer counts as lost. A broken connection is noticed at
            once; this is for cables and power.
        send_ahead_bytes: tensors that may wait to be sent to all peers; beyond it `Transport.isend` blocks.
        max_message_bytes: tensors of one message; a peer that announces more is cut off.
    """

    rank: int | None = None
    peers: Sequence[Peer] = ()
    terms: Mapping[str, str] = field(default_factory=dict)
    keys: Path | None = None
    cluster: str = "home"
    timeout: float = 60.0
    silence: float = 15.0
    send_ahead_bytes: int = 256 << 20
    max_message_bytes: int = 16 << 30


class Transport(ABC):
    """Messages between the devices of one job, which are numbered from 0.

    The registered factory is ``factory(options: TransportOptions) -> Transport``. It returns once all devices are
    connected and agree on ``options.terms``; it raises `BadInput` for options it cannot use, `Refused` where a peer
    refuses this device or this device a peer, and `TransportTimeout` where one does not come. Six members are abstract;
    the collectives have default implementations over them, for transports that have none of their own.

    **Order.** Messages of one sender and one tag arrive in the order in which they were sent, and meet receives of that
    sender and tag in the order in which those were posted. Between tags there is no order: a receive never waits for a
    message of another tag that nobody has asked for.

    **Ahead of the compute thread.** `isend` and `irecv` return at once; the transport's own threads do the work. Post
    receives early: a message whose receive is posted is sent without asking first.

    **Back-pressure.** Data goes to a peer only once it has posted the receive, so a device holds no more than what it
    asked for. Sends that nobody has asked for yet wait at the sender as references to the caller's tensors, up to
    ``send_ahead_bytes``; from there on `isend` blocks (one message is always taken, whatever its size). Waiting for a
    send, or a full queue of sends, before posting a receive that the peer waits for in the same way is a deadlock, and
    ends in `TransportTimeout`.

    **Memory.** Tensors given to `isend` are not copied where they are contiguous in main memory; do not change them
    until the work is done. Received tensors are new, contiguous, in main memory, and the receiver's own to keep or
    change. A transport allocates for what has arrived, never for what a header claims, and never unpickles.

    **Failure.** Once a peer is lost, every send to and receive from it, under way or new, raises `PeerLost` with its
    rank; other peers can be talked to. A lost peer never comes back: close the transport and open another without it.
    A peer that closes its transport is, to the others, lost as well, once what it had sent has arrived.

    **Threads.** All methods may be called from several threads. Use as a context manager closes it.

    Attributes:
        timeout: seconds that anything waits unless told otherwise.
        waits: whether collectives mostly wait for a network, so that it pays to compute meanwhile.
    """

    timeout: float = 60.0
    waits: bool = True

    @property
    @abstractmethod
    def rank(self) -> int:
        """Number of this device."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of devices."""

    @abstractmethod
    def isend(self, to: int, message: Message, *, timeout: float | None = None) -> Work[None]:
        """Begin to send. Blocks, for ``timeout`` seconds at most, only while ``send_ahead_bytes`` wait to be sent.

        The work is done when the tensors may be changed, which is not before the receiver has posted its receive.

        Raises:
            BadInput: no such device (a device cannot send to itself), or the message is not what `Message` allows.
            PeerLost: the peer is gone.
            TransportTimeout: the queue of sends stayed full; the message is not sent.
            TransportError: the transport is closed.
        """

    @abstractmethod
    def irecv(self, source: int, tag: Tag) -> Work[Message]:
        """Post a receive for the next message of ``tag`` from ``source``; never blocks.

        What was sent by a peer that is lost since, and did not arrive, is not to be had.

        Raises:
            BadInput: no such device, or this one.
            PeerLost: the peer is gone.
            TransportError: the transport is closed.
        """

    @abstractmethod
    def lost(self) -> Mapping[int, str]:
        """Peers known to be gone, and why; cheap."""

    @abstractmethod
    def close(self) -> None:
        """Deliver sends whose work is done, tell the peers, and release threads, sockets and files.

        Work under way fails with `TransportError`. Takes at most ``timeout`` seconds. Closing twice is fine.
        """

    # collectives: every member of the group calls the same ones in the same order, from one thread at a time

    def all_reduce(
        self, tensor: torch.Tensor, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        """Replace ``tensor`` by the sum over the group, the same bits on every member.

        Args:
            tensor: any shape and number type but bool, the same on every member; contiguous. Sums are made in its type.
            group: ranks in ascending order, this one among them; None for all.
            timeout: seconds for the whole of it.

        Raises:
            BadInput: a group or tensor that cannot be used.
            PeerLost: a member is gone. Those beside it notice; others may run into `TransportTimeout`.
            TransportTimeout: it did not end in time. After either, ``tensor`` is not to be used.
        """
        ring.all_reduce(self, tensor, group, timeout)

    def broadcast(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        """Replace ``tensor`` by that of ``root``. Arguments and errors as in `all_reduce`; bool is fine."""
        ring.broadcast(self, tensor, root, group, timeout)

    def gather(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> list[torch.Tensor] | None:
        """At ``root`` the tensors of all members, in the group's order; None elsewhere. Else as `broadcast`."""
        return ring.gather(self, tensor, root, group, timeout)

    def barrier(self, group: Sequence[int] | None = None, *, timeout: float | None = None) -> None:
        """Return once every member of the group has called it. Errors as in `all_reduce`."""
        ring.barrier(self, group, timeout)

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
