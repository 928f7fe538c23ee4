"""Bundled transports: local, zmq and torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from pac_core.errors import BadInput
from pac_core.hookspecs import Register, hookimpl
from pac_core.keys import KeyPair

if TYPE_CHECKING:  # importing it would import torch, and hooks run whenever pac starts
    from pac_core.contracts.meeting import Meeting, MeetingOptions
    from pac_core.contracts.transport import Transport, TransportOptions


def make_local(options: TransportOptions) -> Transport:
    """A `LocalTransport`: threads or processes of one machine."""
    from pac_plugins.transports.local import LocalTransport

    return LocalTransport(options)


def make_torch(options: TransportOptions) -> Transport:
    """A `TorchTransport`: processes that torchrun started."""
    from pac_plugins.transports.torch import TorchTransport

    return TorchTransport(options)


def make_zmq(options: TransportOptions) -> Transport:
    """A `ZmqTransport`: encrypted, between devices that know each other's keys."""
    _need_zmq()
    from pac_plugins.transports.zmq import ZmqTransport

    return ZmqTransport(options)


def new_keys() -> KeyPair:
    """Keys for the transport ``zmq``."""
    _need_zmq()
    from pac_plugins.transports import curve

    return curve.new_keys()


def host_zmq(options: MeetingOptions) -> Meeting:
    """A `HostMeeting`: where a leader waits for its workers."""
    _need_zmq()
    _need_zeroconf(options)
    from pac_plugins.transports.zmq_meeting import HostMeeting

    return HostMeeting(options)


def join_zmq(options: MeetingOptions) -> Meeting:
    """A `VisitMeeting`: a worker's way to its leaders."""
    _need_zmq()
    _need_zeroconf(options)
    from pac_plugins.transports.zmq_visit import VisitMeeting

    return VisitMeeting(options)


make_torch.launcher = "torchrun --nproc-per-node 2 --no-python pac finetune --transport torch ..."  # type: ignore[attr-defined]
make_zmq.new_keys = new_keys  # type: ignore[attr-defined]  # what `pac keys new` asks for
make_zmq.host_meeting = host_zmq  # type: ignore[attr-defined]  # for leaders of devices that people start,
make_zmq.join_meeting = join_zmq  # type: ignore[attr-defined]  # and for these devices


def _need_zmq() -> None:
    if importlib.util.find_spec("zmq") is None:
        raise BadInput("transport 'zmq' needs the package pyzmq: pip install \"pac-core[zmq]\"")


def _need_zeroconf(options: MeetingOptions) -> None:
    if options.discovery and importlib.util.find_spec("zeroconf") is None:
        raise BadInput('discovery needs the package zeroconf: pip install "pac-core[discovery]"')


@hookimpl
def pac_register_transports(register: Register) -> None:
    register("local", make_local, summary="threads or processes of one machine, over sockets and shared memory")
    register("zmq", make_zmq, summary="devices on a network, encrypted, each let in by its key")
    register("torch", make_torch, summary="processes that torchrun starts, over torch.distributed (gloo, nccl)")
