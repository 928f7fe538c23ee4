"""A transport that counts what this device sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.transport import Transport


class Metered(Transport):
    """Passes everything on to another transport, and counts the tensors of the messages that it sends.

    Collectives, which that transport may do in its own way, count as each member's share of what a ring would send.

    Attributes:
        sent: bytes of tensors so far.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.timeout = transport.timeout
        self.waits = transport.waits
        self.sent = 0

    @property
    def rank(self) -> int:
        return self.transport.rank

    @property
    def size(self) -> int:
        return self.transport.size

    def isend(self, to: int, message: Message, *, timeout: float | None = None) -> Work[None]:
        work = self.transport.isend(to, message, timeout=timeout)
        self.sent += message.nbytes()
        return work

    def irecv(self, source: int, tag: Tag) -> Work[Message]:
        return self.transport.irecv(source, tag)

    def lost(self) -> Mapping[int, str]:
        return self.transport.lost()

    def close(self) -> None:
        self.transport.close()

    def all_reduce(
        self, tensor: torch.Tensor, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        self.transport.all_reduce(tensor, group, timeout=timeout)
        self._count(tensor, group, 2)

    def broadcast(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        self.transport.broadcast(tensor, root, group, timeout=timeout)
        self._count(tensor, group, 1)

    def gather(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> list[torch.Tensor] | None:
        found = self.transport.gather(tensor, root, group, timeout=timeout)
        self._count(tensor, group, 1)
        return found

    def barrier(self, group: Sequence[int] | None = None, *, timeout: float | None = None) -> None:
        self.transport.barrier(group, timeout=timeout)

    def _count(self, tensor: torch.Tensor, group: Sequence[int] | None, times: int) -> None:
        members = self.size if group is None else len(group)
        self.sent += times * (members - 1) * tensor.numel() * tensor.element_size() // members
