"""Hosts of a network of their own on this machine: network namespaces on a bridge, with links of a given rate.

For tests and measurements of what goes over a network; making them takes root. Nothing of this machine's own network is
touched: the bridge has a namespace too.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMES = Path("/run/netns")
CLONE_NEWNET = 0x40000000
LATENCY = "50ms"
"""How long a packet may wait for its turn before it is dropped."""
BURST = "256kb"
"""What a link that was idle lets through at once."""


@dataclass(frozen=True)
class Host:
    """One of the hosts.

    Attributes:
        namespace: its name.
        address: its IPv4 address.
    """

    namespace: str
    address: str

    def command(self, *command: str) -> list[str]:
        """``command`` as it is run on this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def enter(self) -> None:
        """Let this thread, and what it starts from now on, use the network of the host only.

        Raises:
            OSError: it cannot.
        """
        with open(NAMES / self.namespace) as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter network namespace {self.namespace}")


@dataclass(frozen=True)
class Network:
    """Hosts on one bridge.

    Attributes:
        bridge: namespace of the bridge.
        hosts: those on it.
    """

    bridge: str
    hosts: tuple[Host, ...]

    def shape(self, mbit: int) -> None:
        """Give every link this rate in Mbit/s, in each direction."""
        for number, host in enumerate(self.hosts):
            for namespace, link in ((host.namespace, "eth0"), (self.bridge, f"port{number}")):
                shape = ("tbf", "rate", f"{mbit}mbit", "burst", BURST, "latency", LATENCY)
                _run("ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", link, "root", *shape)


def reason_against() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    lacking = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if lacking:
        return f"making network namespaces takes {lacking[0]} (iproute2)"
    try:
        with network(2) as made:
            made.shape(100)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.decode().strip()}"
    return None


@contextmanager
def network(count: int) -> Iterator[Network]:
    """So many hosts, at 10.77.0.1 and on; they are gone in the end, with those that killed processes have left.

    Raises:
        subprocess.CalledProcessError: they cannot be made.
    """
    _remove([path.name for path in NAMES.glob("pachost-*-*") if not Path("/proc", path.name.split("-")[1]).exists()])
    taken = len(list(NAMES.glob(f"pachost-{os.getpid()}-*")))
    names = [f"pachost-{os.getpid()}-{taken + number}" for number in range(count + 1)]
    bridge, *others = names
    hosts = tuple(Host(name, f"10.77.0.{number}") for number, name in enumerate(others, start=1))
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "bridge", "up")
        for number, host in enumerate(hosts):
            _plug(bridge, f"port{number}", host)
        yield Network(bridge, hosts)
    finally:
        _remove(names)


def _plug(bridge: str, port: str, host: Host) -> None:
    """Connect a host with the bridge."""
    ends = ("link", "add", port, "netns", bridge, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _run("ip", *ends)
    _run("ip", "-n", bridge, "link", "set", port, "master", "bridge", "up")
    _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        _run("ip", "-n", host.namespace, "link", "set", link, "up")


def _remove(names: Sequence[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
