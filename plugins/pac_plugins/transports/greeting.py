"""The first pieces of a connection: who calls, and whether both agree on what the job is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pac_core.contracts.transport import TransportOptions
from pac_core.errors import BadInput, Refused
from pac_core.wire import PROTOCOL, Buffer, Kind, WireError, pack_head, take, unpack_head

_MOST_TEXT = 300


@dataclass(frozen=True)
class Identity:
    """What a device says of itself.

    Attributes:
        rank, size: its number, and how many it believes there are.
        terms: `TransportOptions.terms`.
    """

    rank: int
    size: int
    terms: Mapping[str, str]

    @classmethod
    def of(cls, options: TransportOptions) -> Identity:
        """From options that name all peers.

        Raises:
            BadInput: no rank, or none of a peer.
        """
        size = len(options.peers)
        if options.rank is None or not 0 <= options.rank < size:
            raise BadInput(f"rank {options.rank} is not one of the {size} peers that the transport was given")
        return cls(options.rank, size, options.terms)

    def hello(self) -> bytes:
        """What to send first to a peer that one connects to."""
        return pack_head(Kind.HELLO, PROTOCOL, self.rank, self.size, dict(self.terms))

    def judge(self, frames: Sequence[Buffer]) -> tuple[int, str]:
        """The rank in a hello, and why it is refused; an empty text if it is not.

        Raises:
            WireError: it is no hello.
        """
        kind, fields = unpack_head(frames[0]) if len(frames) == 1 else (None, [])
        if kind is not Kind.HELLO or not fields or type(fields[0]) is not int:
            raise WireError("the first piece is no greeting")
        if fields[0] != PROTOCOL:
            return -1, f"it speaks protocol {fields[0]}, and this device {PROTOCOL}; install the same version of PAC"
        _, rank, size, terms = take(fields, int, int, int, dict)
        if size != self.size or not self.rank < rank < self.size:
            return rank, f"it is device {rank} of {size}, which does not connect to device {self.rank} of {self.size}"
        return rank, self.difference(terms)

    def difference(self, theirs: Mapping[Any, Any]) -> str:
        """In which term a device differs from this one; empty if in none."""
        for name in sorted({*self.terms, *map(str, theirs)}):
            mine, other = self.terms.get(name), theirs.get(name)
            if mine != other:
                return f"its {readable(name)} is {readable(other)}, and that of device {self.rank} is {readable(mine)}"
        return ""


def refusal(reason: str) -> bytes:
    """What to answer to a hello that is refused."""
    return pack_head(Kind.REFUSE, reason[:_MOST_TEXT])


def check_answer(peer: int, frames: Sequence[Buffer]) -> None:
    """Return if a peer welcomes this device.

    Raises:
        Refused: it does not.
        WireError: it is no answer.
    """
    kind, fields = unpack_head(frames[0]) if len(frames) == 1 else (None, [])
    if kind is Kind.REFUSE:
        (reason,) = take(fields, str)
        raise Refused(f"device {peer} refuses this device: {readable(reason)}")
    if kind is not Kind.WELCOME or fields:
        raise WireError("the first piece is no answer to a greeting")


def readable(text: object) -> str:
    """A stranger's text, short and without what a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:_MOST_TEXT])
