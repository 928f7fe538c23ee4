"""What `FramedTransport` needs of a network: moving lists of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from pac_core.wire import Buffer


class Handed(Protocol):
    """Frames that were handed to the network."""

    @property
    def done(self) -> bool:
        """Whether their memory may be changed."""


class Sent:
    """Frames that the network has copied or sent."""

    done = True


class Link(ABC):
    """Connections to all peers, made when the link is. Only `wake` may be called from other threads than one.

    A piece is a list of frames; pieces to one peer arrive whole and in order, or the peer is lost.
    """

    @abstractmethod
    def send(self, peer: int, frames: Sequence[Buffer]) -> Handed | None:
        """Begin to send a piece; None if the peer takes nothing at the moment, or is lost."""

    @abstractmethod
    def receive(self, seconds: float, blocked: Collection[int]) -> list[tuple[int, list[Buffer]]]:
        """Pieces that have arrived, each with the peer it is from.

        Args:
            seconds: to wait if there is none.
            blocked: peers that `send` gave None for; it also returns when one of them may take something.
        """

    @abstractmethod
    def lost(self) -> Mapping[int, str]:
        """Peers whose connection broke and from whom everything that arrived has been handed out, with reasons."""

    @abstractmethod
    def forget(self, peer: int) -> None:
        """The peer is lost: hold and send nothing for it any more."""

    @abstractmethod
    def wake(self) -> None:
        """Make `receive` return; from any thread."""

    @abstractmethod
    def close(self, seconds: float) -> None:
        """Send what was handed over, for so long at most, and release everything."""
