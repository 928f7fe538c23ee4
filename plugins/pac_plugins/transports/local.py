"""Devices of one machine, threads or processes: messages over Unix sockets, collectives through shared memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from pac_core.contracts.ring import check_root, check_tensor, members
from pac_core.contracts.transport import TransportOptions
from pac_core.errors import TransportError
from pac_plugins.transports.board import Board
from pac_plugins.transports.framed import FramedTransport
from pac_plugins.transports.greeting import Identity
from pac_plugins.transports.local_link import LocalLink


class LocalTransport(FramedTransport):
    """Stages or workers on one machine, in threads or processes.

    ``options.peers[i].address`` is the path of the socket file at which device i listens while the devices connect;
    its permissions let no other user in. The file is gone once all are connected. Collectives of all devices go through
    memory that they share, those of some through messages.

    Raises:
        BadInput: an address that cannot be used, or is in use.
        Refused: devices differ in their terms or in the number of devices.
        TransportTimeout: a device did not come.
    """

    waits = False

    def __init__(self, options: TransportOptions) -> None:
        identity = Identity.of(options)
        link = LocalLink(identity, options)
        super().__init__(link, identity.rank, identity.size, options)
        self._board = Board(identity.rank, link.memory, link.bells, self._gone)

    def all_reduce(
        self, tensor: torch.Tensor, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        if self._some(group):
            super().all_reduce(tensor, group, timeout=timeout)
            return
        check_tensor(tensor, sums=True)
        self._board.all_reduce(tensor.detach().view(-1), self._deadline(timeout))

    def broadcast(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        if self._some(group):
            super().broadcast(tensor, root, group, timeout=timeout)
            return
        check_tensor(tensor)
        check_root(root, range(self.size))
        self._board.broadcast(tensor.detach().view(-1), root, self._deadline(timeout))

    def gather(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> list[torch.Tensor] | None:
        if self._some(group):
            return super().gather(tensor, root, group, timeout=timeout)
        check_tensor(tensor)
        check_root(root, range(self.size))
        found = self._board.gather(tensor.detach().view(-1), root, self._deadline(timeout))
        return None if found is None else [values.view(tensor.shape) for values in found]

    def barrier(self, group: Sequence[int] | None = None, *, timeout: float | None = None) -> None:
        if self._some(group):
            super().barrier(group, timeout=timeout)
        else:
            self._board.barrier(self._deadline(timeout))

    def close(self) -> None:
        super().close()
        self._board.close()

    def _some(self, group: Sequence[int] | None) -> bool:
        """Whether a group is not all of several devices; errors as in `members`."""
        return not 1 < len(members(self.rank, self.size, group)) == self.size

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def _gone(self, rank: int) -> TransportError | None:
        """Why nothing more is to be expected of a device, if that is so."""
        with self._gate:
            try:
                self._check(rank)
            except TransportError as error:
                return error.with_traceback(None)  # whose frames would keep the board's memory
        return None
