"""Addresses of this machine: of a network card, towards another machine, and ports that are free."""

from __future__ import annotations

import contextlib
import fcntl
import re
import socket
import struct
import sys

from pac_core.errors import BadInput

_ADDRESS = re.compile(r"tcp://(?P<host>\[[^\]\s]+\]|[^:\[\]\s/]+):(?P<port>\d{1,5})")
_SIOCGIFADDR = 0xC0206921 if sys.platform == "darwin" else 0x8915


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of ``tcp://HOST:PORT``.

    Raises:
        BadInput: it is no such address.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise BadInput(f"address '{address}' cannot be used: it must be like tcp://HOST:PORT")
    return found["host"].strip("[]"), int(found["port"])


def join_address(host: str, port: int) -> str:
    """The address of a host and a port; the other way round than `split_address`."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def interfaces() -> list[str]:
    """Names of this machine's network cards."""
    return [name for _, name in socket.if_nameindex()]


def interface_address(name: str) -> str:
    """The IPv4 address of a network card.

    Raises:
        BadInput: there is no such card, or it has no address.
    """
    if name not in interfaces():
        raise BadInput(f"interface '{name}' is not known; this machine has {', '.join(interfaces())}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError as error:
            raise BadInput(f"interface '{name}' has no IPv4 address: {error.strerror}") from error
    return socket.inet_ntoa(answer[20:24])


def own_address(towards: str) -> str:
    """This machine's address as the host of the address ``towards`` sees it; nothing is sent.

    Raises:
        BadInput: no such host, or no way there.
    """
    host, port = split_address(towards)
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise BadInput(f"there is no way to '{host}': {error.strerror or error}") from error


def free_port(host: str, port: int = 0) -> int:
    """A port of ``host``, an address of this machine, that nobody listens at: ``port``, or any if that is 0.

    Raises:
        BadInput: it is no address of this machine, or the port is in use.
    """
    return _free(host, port, 1)[0]


def free_ports(host: str, count: int) -> list[int]:
    """So many different ones of `free_port`."""
    return _free(host, 0, count)


def _free(host: str, port: int, count: int) -> list[int]:
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as open_probes:
            probes = [open_probes.enter_context(socket.socket(family, kind)) for _ in range(count)]
            for probe in probes:
                if port:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who is to listen there does
                probe.bind(place)
            return [int(probe.getsockname()[1]) for probe in probes]
    except OSError as error:
        wanted = join_address(host, port) if port else host
        raise BadInput(f"cannot listen at '{wanted}': {error.strerror or error}") from error
