"""Bundled transports: local, zmq and torch."""

from __future__ import annotations

from pac_core.contracts.transport import Transport, TransportOptions
from pac_core.hookspecs import Register, hookimpl


def make_local(options: TransportOptions) -> Transport:
    """A `LocalTransport`: threads or processes of one machine."""
    from pac_plugins.transports.local import LocalTransport

    return LocalTransport(options)


@hookimpl
def pac_register_transports(register: Register) -> None:
    register("local", make_local, summary="threads or processes of one machine, over Unix sockets")
