"""Keys for ZeroMQ's CURVE: encryption, and who may connect."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import zmq
from zmq.utils import z85

from pac_core.errors import BadInput
from pac_core.keys import KeyFolder, KeyPair

if TYPE_CHECKING:  # importing it would import torch, which a worker that waits does without
    from pac_core.contracts.transport import TransportOptions

log = logging.getLogger("pac")

_QUIET = 10.0  # seconds for which the same complaint is not logged again, so that nobody can fill the log


def new_keys() -> KeyPair:
    """A new pair of CURVE keys."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


@dataclass(frozen=True)
class Curve:
    """What CURVE needs to know.

    Attributes:
        own: this device's keys.
        domain: name of the cluster.
        allowed: gives the names of the devices that may connect, by public key.
    """

    own: KeyPair
    domain: str
    allowed: Callable[[], Mapping[str, str]]

    @classmethod
    def open(cls, keys: Path, cluster: str) -> Curve:
        """The keys in a folder.

        Raises:
            BadInput: there are none.
        """
        folder = KeyFolder(keys)
        return cls(folder.own(), cluster, lambda: folder.allowed(cluster))

    @classmethod
    def of(cls, options: TransportOptions) -> Curve:
        """The keys in the folder that the options name.

        Raises:
            BadInput: there is none, or a peer is not on the allow-list.
        """
        if options.keys is None:
            raise BadInput("transport 'zmq' needs a folder of keys: give --keys DIR (see 'pac keys new --help')")
        cluster = options.cluster
        curve = cls.open(options.keys, cluster)
        allowed = curve.allowed()
        for rank, peer in enumerate(options.peers):
            if rank == options.rank and peer.key != curve.own.public:
                raise BadInput(f"device {rank} is to have the key '{peer.key}'; that in {options.keys} is another one")
            if rank != options.rank and peer.key not in allowed:
                raise BadInput(
                    f"the key '{peer.key}' of device {rank} is not on the allow-list of cluster '{cluster}' in "
                    f"{options.keys}; put it there with 'pac keys allow'"
                )
        return curve

    def serve(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket accept only those whom `Gatekeeper` lets in."""
        socket.curve_server = True
        socket.curve_secretkey = self.own.secret.encode()
        socket.zap_domain = self.domain.encode()

    def call(self, socket: zmq.Socket[bytes], key: str) -> None:
        """Make a socket connect only to the device that has this public key."""
        socket.curve_serverkey = key.encode()
        socket.curve_publickey = self.own.public.encode()
        socket.curve_secretkey = self.own.secret.encode()


class Gatekeeper:
    """Answers libzmq's questions (ZAP, RFC 27) whether a key may connect. It must exist before a socket is bound.

    The allow-list is read for each question, so that it may be changed while the transport runs.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], curve: Curve) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._curve = curve
        self._complain = Complaints()

    def answer(self) -> None:
        """Answer one question, which the socket must have."""
        version, request, domain, address, _, mechanism, *credentials = self.socket.recv_multipart()
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and len(credentials) == 1 else ""
        allowed = domain.decode() == self._curve.domain and key in self._allowed()
        if not allowed:
            self._complain(f"refused {address.decode()}: its key '{key}' may not take part in '{self._curve.domain}'")
        status = [b"200", b"OK", key.encode()] if allowed else [b"400", b"this key may not take part", b""]
        self.socket.send_multipart([version, request, *status, b""])

    def _allowed(self) -> Mapping[str, str]:
        try:
            return self._curve.allowed()
        except BadInput as error:  # a damaged list lets nobody in
            self._complain(str(error))
            return {}


class Complaints:
    """Logs a warning, unless the same one was logged a moment ago."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        self._said = {said: when for said, when in self._said.items() if now - when < _QUIET}
        if text not in self._said:
            self._said[text] = now
            log.warning("%s", text)
