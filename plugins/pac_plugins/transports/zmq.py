"""Devices on a network, over ZeroMQ with CURVE."""

from __future__ import annotations

from pac_core.contracts.transport import TransportOptions
from pac_plugins.transports.curve import Curve
from pac_plugins.transports.framed import FramedTransport
from pac_plugins.transports.greeting import Identity
from pac_plugins.transports.zmq_link import ZmqLink


class ZmqTransport(FramedTransport):
    """Encrypted messages between devices that know each other's keys.

    ``options.peers[i]`` has ``tcp://HOST:PORT`` of device i and its public key; device i listens there, and devices of
    higher rank connect to it. ``options.keys`` is a folder of `pac_core.keys.KeyFolder`; on every device, all others
    must be on the allow-list of ``options.cluster``. A key that is not never gets further than the handshake, and is
    logged. The allow-list decides who may connect; it is read again for each connection.

    Raises:
        BadInput: no keys, an address that cannot be used or is in use, or a peer that is not on the allow-list.
        Refused: a peer does not let this device's key in, has another key than it is to have, or differs in its terms.
        TransportTimeout: a device did not come.
    """

    def __init__(self, options: TransportOptions) -> None:
        identity = Identity.of(options)
        super().__init__(ZmqLink(identity, options, Curve.of(options)), identity.rank, identity.size, options)
