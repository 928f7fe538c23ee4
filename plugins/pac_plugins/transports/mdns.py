"""Finding a leader in the local network by mDNS. A record tells the cluster's name, a port and a key's fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack

from zeroconf import InterfaceChoice, NonUniqueNameException, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from pac_core.addresses import join_address, split_address
from pac_core.errors import BadInput

TYPE = "_pac._tcp.local."
_LOOKUP_MS = 2000
_MOST = 64  # leaders remembered


def fingerprint(key: str) -> str:
    """16 hexadecimal digits that tell one public key from another, and do not give it away."""
    return hashlib.blake2b(key.encode(), digest_size=8, person=b"pac-key").hexdigest()


def announce(cluster: str, address: str, key: str, interface: str) -> ExitStack:
    """Announce the leader that listens at ``address`` until the result is closed.

    Raises:
        BadInput: the network does not take the announcement.
    """
    host, port = split_address(address)
    stack = ExitStack()
    try:
        number = socket.gethostbyname(host)
        network = _network(interface or number)
        stack.callback(network.close)
        info = ServiceInfo(
            TYPE,
            f"{cluster[:40]}-{fingerprint(key)}.{TYPE}",
            port=port,
            properties={"key": fingerprint(key), "cluster": cluster},
            addresses=[socket.inet_aton(number)],
        )
        network.register_service(info)
    except (OSError, NonUniqueNameException) as error:
        stack.close()
        raise BadInput(
            f"cannot announce the leader by mDNS: {error or type(error).__name__}; choose an interface, or give "
            "workers its address instead of --discover"
        ) from error
    stack.callback(network.unregister_service, info)
    return stack


class Browser:
    """Leaders that announce themselves. Nobody is believed: an announcement leads to a handshake, no further.

    Raises:
        BadInput: this network has no multicast.
    """

    def __init__(self, cluster: str, interface: str) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, str]] = {}
        try:
            self._network = _network(interface)
        except OSError as error:
            raise BadInput(f"cannot look for leaders by mDNS: {error}; give --leader ADDRESS instead") from error
        self._browser = ServiceBrowser(self._network, TYPE, handlers=[self._heed])

    def found(self, keys: Mapping[str, str]) -> list[str]:
        """Addresses of leaders of the cluster whose keys are among ``keys``."""
        wanted = {fingerprint(key) for key in keys}
        with self._lock:
            return [address for address, mark in self._found.values() if mark in wanted]

    def close(self) -> None:
        """Look no further."""
        self._browser.cancel()
        self._network.close()

    def _heed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:  # by these names zeroconf calls it
        if state_change is ServiceStateChange.Removed:
            return
        info = zeroconf.get_service_info(service_type, name, _LOOKUP_MS)
        if info is None or info.port is None or _text(info, b"cluster") != self._cluster:
            return
        addresses = info.parsed_addresses()
        with self._lock:
            if addresses and len(self._found) < _MOST:
                self._found[name] = (join_address(addresses[0], info.port), _text(info, b"key"))


def _text(info: ServiceInfo, name: bytes) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        return (info.properties.get(name) or b"").decode()
    return ""


def _network(interface: str) -> Zeroconf:
    return Zeroconf(interfaces=[interface] if interface else InterfaceChoice.Default)
