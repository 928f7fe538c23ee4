"""The devices of a run that a launcher has started, each with the same command: torchrun, which numbers them, brings
them together, and starts all of them anew when one has died."""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from types import FrameType, TracebackType
from typing import Any

import torch

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster, DeviceProfile
from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import CLOSED, Transport, TransportOptions
from pac_core.control import own_version
from pac_core.errors import RESUME, BadInput, Followed, PeerLost, RunFailed, TransportError
from pac_core.facts import facts_here
from pac_core.launch import Launch
from pac_core.planning.make import FAR, NEAR, device_names, local_cluster
from pac_core.registry import Registry
from pac_core.runtime.crew import SILENCE_SECONDS
from pac_core.runtime.job import PATIENCE

FAREWELL_SECONDS = 1.0
"""How much later than a device that failed the others end: the launcher names the first that does as the cause."""

OWN_AFFAIR = {"model", "train", "eval", "output", "plan", "cache", "columns", "generation"}
"""Settings in which devices may differ: those of the leader alone, and where files lie."""


def launcher_of(transport: str | None, registry: Registry) -> str | None:
    """How to start the processes that a transport connects; None if a run starts them itself.

    Raises:
        UnknownPlugin: there is no such transport.
    """
    return None if transport is None else getattr(registry.get("transports", transport), "launcher", None)


def as_launched(config: RunConfig, registry: Registry) -> RunConfig:
    """``config`` with the devices that were launched. Where it is one, it has no transport.

    Raises:
        BadInput: transport and launcher do not fit, or other devices are asked for.
    """
    launch, launcher = Launch.found(), launcher_of(config.transport, registry)
    if launcher is None:
        if launch is not None and launch.size > 1:
            raise BadInput(
                f"torchrun has started {launch.size} processes of this run, which need --transport torch to work as one"
            )
        return config
    if launch is None:
        raise BadInput(f"--transport {config.transport}: the processes that it connects are started as in '{launcher}'")
    if "devices" in config.model_fields_set and config.devices != str(launch.size):
        raise BadInput(
            f"--devices {config.devices}: torchrun has started {launch.size} processes, which are the devices of this "
            "run; leave --devices out"
        )
    return config.model_copy(
        update={"devices": str(launch.size), "transport": config.transport if launch.size > 1 else None}
    )


class Spmd:
    """All devices of a launched run, in the shape of `pac_core.runtime.crew.Crew`. Unlike there, every device enters
    it: they are connected from then on, so that whatever one of them meets ends all.

    The launcher sends SIGTERM to all once one has died, often before that is noticed here. So SIGTERM is answered with
    what is wrong, and one that comes while this process is about to end by itself does not keep it from saying why.

    Args:
        config: the run, as `as_launched` gives it.
        launch: this process's place in it.
        registry: the plugins.

    Attributes:
        leads: whether this process leads the others.
        remote: whether some are on other machines.
    """

    def __init__(self, config: RunConfig, launch: Launch, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.leads = launch.leads
        self.remote = launch.here != launch.size
        self._launch = launch
        self._transport: Transport | None = None
        self._ending = False
        self._follows = False
        self._old: Any = None
        self._cluster = local_cluster(device_names(launch.size), torch.get_num_threads())

    @property
    def devices(self) -> Cluster:
        """All devices by rank, this one too; at the leader."""
        return self._cluster

    def __enter__(self) -> Spmd:
        factory = self.registry.get("transports", self.config.transport or "")
        terms = {"pac": own_version(), "command": command_digest(self.config)}
        self._transport = factory(TransportOptions(terms=terms, timeout=PATIENCE, silence=SILENCE_SECONDS))
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGTERM, self._terminate)
        try:
            if self.remote:
                self._introduce(self._transport)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transport is not None
        self._ending = True
        self._transport.close()
        if self._follows:
            time.sleep(FAREWELL_SECONDS)
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old if error is None else signal.SIG_IGN)

    def connect(self) -> Transport:
        """The transport between all devices."""
        assert self._transport is not None
        return self._transport

    def explain(self, error: TransportError) -> RunFailed:
        """``error`` as the user is to read it: once, at the leader or, if its process died, at the next device."""
        self._ending = self._follows = True
        lost = {} if self._transport is None else self._transport.lost()
        died = {rank: PeerLost(rank, reason) for rank, reason in lost.items() if reason != CLOSED}
        if self.leads or (0 in died and self._launch.rank == 1):
            cause = next(iter(died.values()), error)  # those that closed have done so because of it
            return RunFailed(f"{cause}; {RESUME}")
        return Followed(str(error))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self._ending:
            return
        self._ending = True
        assert self._transport is not None
        for rank, reason in self._transport.lost().items():
            raise PeerLost(rank, reason)
        raise KeyboardInterrupt

    def _introduce(self, transport: Transport) -> None:
        """Tell the leader what this device is; the leader learns it of all."""
        tag, own = Tag("device"), self._profile()
        if not self.leads:
            transport.isend(0, Message(tag, asdict(own), {})).wait()
            return
        others = [transport.irecv(rank, tag).wait().header for rank in range(1, transport.size)]
        profiles = [own, *(DeviceProfile(**header) for header in others)]
        profiles = [replace(profile, flops=_of_node(profiles, profile)) for profile in profiles]
        pairs = combinations([profile.name for profile in profiles], 2)
        near = [(one, other) for one, other in pairs if _node(one) == _node(other)]
        self._cluster = Cluster(tuple(profiles), dict.fromkeys(near, NEAR), default=FAR)

    def _profile(self) -> DeviceProfile:
        name = f"{platform.node() or 'local'}/{self._launch.rank}"
        facts = facts_here(name, Path.home(), torch.get_num_threads())
        memory = facts.memory_free_bytes or facts.memory_bytes
        return DeviceProfile(name, facts.gflops * 1e9, memory // self._launch.here)


def command_digest(config: RunConfig) -> str:
    """Hex digest of the settings that must be the same at all devices."""
    settings = {name: value for name, value in config.plain().items() if name not in OWN_AFFAIR}
    settings["cache.dtype"] = config.cache.dtype
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()


def _of_node(profiles: Sequence[DeviceProfile], one: DeviceProfile) -> float:
    """Speed of a process of the same machine, on average: they are alike, but have measured beside each other."""
    return fmean(profile.flops for profile in profiles if _node(profile.name) == _node(one.name))


def _node(name: str) -> str:
    return name.rpartition("/")[0]
