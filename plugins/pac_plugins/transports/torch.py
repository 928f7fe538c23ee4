"""Devices that torchrun starts, over torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from pac_core.contracts import ring
from pac_core.contracts.transport import TransportOptions
from pac_core.errors import BadInput, PeerLost, Refused, TransportError, TransportTimeout
from pac_core.wire import Kind, WireError, pack_head, take, unpack_head
from pac_plugins.transports.framed import FramedTransport
from pac_plugins.transports.greeting import Identity
from pac_plugins.transports.torch_link import TorchLink
from pac_plugins.transports.torch_store import fresh_store

_NEVER = timedelta(days=365)
_MOST_TERMS = 1 << 20  # bytes
_LEARN = 2.0  # seconds in which a peer whose connection broke is known by its rank

_Start = Callable[[dist.ProcessGroup | None], "dist.Work | None"]


class TorchTransport(FramedTransport):
    """Processes started by ``torchrun``, which numbers them and lets them find each other.

    Messages go through gloo, in main memory. Collectives are torch.distributed's: gloo for tensors in main memory, nccl
    for those on CUDA devices. Nothing is encrypted and nobody authenticated: for one machine or a network of your own.

    ``options.peers`` and ``options.keys`` are not used, nor is ``rank``, which may be None. A process group that exists
    is used and left; else one is made and destroyed with the transport.

    Raises:
        BadInput: not started by torchrun, or a backend that cannot be used.
        Refused: devices differ in their terms.
        TransportTimeout: a device did not come.
    """

    def __init__(self, options: TransportOptions) -> None:
        self._owns = not dist.is_initialized()
        if self._owns:
            _begin(options)
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        rank, size = dist.get_rank(), dist.get_world_size()
        try:
            _agree(Identity(rank, size, options.terms))
            group = dist.new_group(backend="gloo", timeout=_NEVER)
            super().__init__(TorchLink(rank, size, group), rank, size, options)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        super().close()
        self._release()

    def _release(self) -> None:
        for group in self._groups.values():
            dist.destroy_process_group(group)
        self._groups.clear()
        if self._owns and dist.is_initialized():
            dist.destroy_process_group()
        self._owns = False

    def all_reduce(
        self, tensor: torch.Tensor, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        ring.check_tensor(tensor, sums=True)
        summed = tensor.int() if tensor.dtype is torch.int16 else tensor  # gloo has no sums of int16
        self._run_collective(group, timeout, lambda g: dist.all_reduce(summed, group=g, async_op=True), tensor)
        if summed is not tensor:
            tensor.copy_(summed)

    def broadcast(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> None:
        ring.check_tensor(tensor)
        self._check_root(root, group)
        data = _bytes(tensor)
        self._run_collective(group, timeout, lambda g: dist.broadcast(data, root, group=g, async_op=True), tensor)

    def gather(
        self, tensor: torch.Tensor, root: int, group: Sequence[int] | None = None, *, timeout: float | None = None
    ) -> list[torch.Tensor] | None:
        ring.check_tensor(tensor)
        members = self._check_root(root, group)
        found = [torch.empty_like(tensor) for _ in members] if self.rank == root else None
        places = None if found is None else [_bytes(each) for each in found]
        data = _bytes(tensor)
        self._run_collective(group, timeout, lambda g: dist.gather(data, places, root, g, async_op=True), tensor)
        return found

    def barrier(self, group: Sequence[int] | None = None, *, timeout: float | None = None) -> None:
        self.all_reduce(torch.zeros(1), group, timeout=timeout)  # torch's own would want to know a CUDA device

    def _check_root(self, root: int, group: Sequence[int] | None) -> tuple[int, ...]:
        members = ring.members(self.rank, self.size, group)
        if root not in members:
            raise BadInput(f"device {root} is not in the group {list(members)}")
        return members

    def _run_collective(
        self, group: Sequence[int] | None, timeout: float | None, start: _Start, tensor: torch.Tensor
    ) -> None:
        members = ring.members(self.rank, self.size, group)
        if self._closed:
            raise TransportError(self._closed)
        if not tensor.numel():
            return
        seconds = self.timeout if timeout is None else timeout
        try:
            work = start(self._group_of(members))
            assert work is not None
            work.wait(timedelta(seconds=seconds))
        except RuntimeError as error:
            self._explain(members, seconds, error)

    def _group_of(self, members: tuple[int, ...]) -> dist.ProcessGroup | None:
        if len(members) == self.size:
            return None
        if members not in self._groups:
            limit = timedelta(seconds=self.timeout)
            self._groups[members] = dist.new_group(list(members), limit, use_local_synchronization=True)
        return self._groups[members]

    def _explain(self, members: tuple[int, ...], seconds: float, error: RuntimeError) -> None:
        if "timed out" in str(error).lower():
            raise TransportTimeout(f"a collective of {list(members)} did not end in {seconds:g} seconds") from error
        deadline = time.monotonic() + _LEARN
        while time.monotonic() < deadline:
            self._raise_loss(members)
            time.sleep(0.02)
        raise TransportError(f"a collective of {list(members)} failed: {str(error).splitlines()[0][:200]}") from error

    def _raise_loss(self, members: tuple[int, ...]) -> None:
        lost = self.lost()
        for member in members:
            if member in lost:
                raise PeerLost(member, lost[member])


def _begin(options: TransportOptions) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    limit = timedelta(seconds=options.timeout)
    try:
        shared, rank, size = next(dist.rendezvous("env://", timeout=limit))
        store = fresh_store(shared, rank, size, options.timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except ValueError as error:
        raise BadInput(
            f"transport 'torch' is for processes that torchrun starts, as in 'torchrun --nproc-per-node 2 ...': {error}"
        ) from error
    except dist.DistError as error:
        if "time" in str(error).lower():
            raise TransportTimeout(f"not all devices came in {options.timeout:g} seconds: {_line(error)}") from error
        raise BadInput(f"torch.distributed cannot start: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def _agree(identity: Identity) -> None:
    """Compare terms with all devices.

    Raises:
        Refused: some differ.
    """
    own = torch.frombuffer(bytearray(pack_head(Kind.WELCOME, dict(identity.terms))), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(identity.size)]
    dist.all_gather(sizes, torch.tensor([own.numel()]))
    most = max(int(size) for size in sizes)
    if most > _MOST_TERMS:
        raise Refused(f"the terms of a device take {most:,} bytes; {_MOST_TERMS:,} is the most")
    padded = torch.zeros(most, dtype=torch.uint8)
    padded[: own.numel()] = own
    found = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    for rank, (size, data) in enumerate(zip(sizes, found)):
        try:
            _, fields = unpack_head(data[: int(size)].numpy().data)
            (terms,) = take(fields, dict)
        except WireError as error:
            raise Refused(f"device {rank} runs another version of PAC: {error}") from error
        reason = identity.difference(terms)
        if reason:
            raise Refused(f"device {rank} cannot take part: {reason}")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as uint8 (n), of whatever type it is."""
    return tensor.detach().view(-1).view(torch.uint8)
