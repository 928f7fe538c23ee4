"""The devices of a run over several machines: gathered, given their parts, watched, and ended with the run."""

from __future__ import annotations

import logging
import os
import re
import uuid
from functools import partial
from pathlib import Path
from types import TracebackType

import torch

from pac_core.addresses import free_port, join_address, split_address
from pac_core.cluster import Cluster, is_cluster
from pac_core.config import RunConfig
from pac_core.contracts import cluster as planned
from pac_core.contracts.transport import Transport
from pac_core.control import End, Job, PeerAddress, Purpose, readable
from pac_core.errors import BadInput, RunFailed, TransportError
from pac_core.facts import DeviceFacts, facts_here
from pac_core.keys import KeyFolder
from pac_core.launch import Launch
from pac_core.planning.cards import card
from pac_core.planning.cluster_file import as_given, linked
from pac_core.planning.make import load_plan
from pac_core.registry import Registry
from pac_core.runtime.assignment import Assignment, connect
from pac_core.runtime.crew import WAYS_OUT, Crew, device_count
from pac_core.runtime.gathering import Gathering, facts_given
from pac_core.runtime.spmd import Spmd, launcher_of
from pac_core.runtime.watch import Watch

log = logging.getLogger("pac")

READY_SECONDS = 600.0
"""How long a worker may take to load."""

REACH_SECONDS = 60.0
"""How long workers that are ready may take to connect: they look for the leader several times a second."""

NEWS_SECONDS = 0.5
"""How long after the wish to stop the news may come that a device has left, from which the wish came then."""

EXPLAIN_SECONDS = 4.0
"""How long to wait for the reason of a failure: a process that has closed its transport takes a while to end."""


def crew_for(config: RunConfig, registry: Registry) -> Crew | ClusterCrew | Spmd | None:
    """The other devices of a run, to be entered; None if there are none.

    Args:
        config: the run, as `pac_core.runtime.spmd.as_launched` gives it.
        registry: the plugins.

    Raises:
        BadInput: the configuration asks for what cannot be.
    """
    launch = Launch.found()
    if launch is not None and launcher_of(config.transport, registry) is not None:
        return Spmd(config, launch, registry)
    if not is_cluster(config.devices):
        count = device_count(config)
        return Crew(config, count, registry) if count > 1 else None
    if config.scheduler is not None:
        registry.get("schedulers", config.scheduler)  # before anyone is waited for
    cluster = Cluster.load(config.devices)
    if config.transport not in (None, cluster.transport):
        raise BadInput(f"--transport is {config.transport}, and that of {config.devices} {cluster.transport}")
    if config.plan is not None:
        cluster = in_plan(cluster, config.plan)
    return ClusterCrew(config, cluster, registry)


def in_plan(cluster: Cluster, path: Path) -> Cluster:
    """``cluster`` without the devices that the plan in a file leaves out; the run goes on without them.

    Raises:
        BadInput: there is no plan in it, or it leaves out this device, which leads, or all others.
    """
    named = load_plan(path).devices
    leader, _ = KeyFolder(cluster.key_folder).name_and_key()
    listed = [device.name for device in cluster.devices]
    if leader not in named:
        raise BadInput(
            f"{path}: the plan is for {', '.join(named)}; '{leader}' is not among them, but leads every run; "
            "make another one with pac plan"
        )
    if named == (leader,):
        raise BadInput(f"{path}: the plan is for this device, '{leader}', alone; leave --plan and --devices out")
    absent = [name for name in listed if name not in named]
    if absent:
        log.warning("the plan leaves out %s; the run goes on without", ", ".join(absent))
    return cluster.without(absent)


class ClusterCrew:
    """The workers of a run that this process leads, in the shape of `pac_core.runtime.crew.Crew`.

    While entered, they are at work, and a thread watches over the control connections: a device that leaves ends the
    run at all others and here. Afterwards they wait for the next job, and nothing is left of this end.

    Attributes:
        facts: of the workers, by name, in the order of their ranks from 1; once entered.
    """

    leads = True
    """Whether this process leads the others."""

    remote = True
    """Whether the devices are other machines."""

    def __init__(self, config: RunConfig, cluster: Cluster, registry: Registry, purpose: Purpose = "train") -> None:
        self.config = config
        self.purpose = purpose
        self.cluster = cluster
        self.registry = registry
        self.facts: dict[str, DeviceFacts] = {}
        self._job = f"{config.output.name}-{uuid.uuid4().hex[:6]}"[-100:]
        self._leader = ""
        self._own: Assignment | None = None
        self._transport: Transport | None = None
        self._watch: Watch | None = None
        self._threads = torch.get_num_threads()

    @property
    def devices(self) -> planned.Cluster:
        """All devices by rank, this one too; once entered."""
        assert self._own is not None
        own = facts_here(self._leader, Path.home(), self._own.threads)
        own = own.model_copy(update={"emulates": self.config.emulate or ""})
        found = {self._leader: facts_given(self.cluster, own, self._leader), **self.facts}
        profiles = [as_given(self.cluster.device(name), profile_of(name, facts)) for name, facts in found.items()]
        return linked(self.cluster, profiles)

    def __enter__(self) -> ClusterCrew:
        gathering = Gathering(self.cluster, self.registry)
        try:
            gathering.gather()
            gathering.check()
            offers = gathering.call(self._job)
            facts = gathering.facts()
            self.facts = {name: facts[name] for name in gathering.workers}
            self._check_emulated()
            self._start(gathering, offers)
        except BaseException:
            for name in gathering.workers:
                gathering.send(name, End(job=self._job, reason="it did not come about"))
            gathering.meeting.close(1.0)
            raise
        self._watch = Watch(gathering.meeting, self._job, list(offers), WAYS_OUT[self.purpose])
        self._watch.start()
        assert self._own is not None
        torch.set_num_threads(self._own.threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        torch.set_num_threads(self._threads)
        left = self._watch.departure(NEWS_SECONDS if kind is KeyboardInterrupt else 0.0)
        self._watch.finish("" if error is None else _reason(error))
        if self._transport is not None:
            self._transport.close()
        if kind is KeyboardInterrupt and left is not None:  # from there came the wish to stop
            raise RunFailed(f"{left}; {WAYS_OUT[self.purpose]}") from error

    def connect(self) -> Transport:
        """Connect with all workers, once each is ready.

        Raises:
            RunFailed: one has ended instead.
            Refused, TransportTimeout: as the transport contract says.
        """
        assert self._watch is not None
        assert self._own is not None
        self._watch.wait_ready(READY_SECONDS)
        self._transport = self._watch.connected(partial(connect, self._own, self.registry, REACH_SECONDS))
        return self._transport

    def explain(self, error: TransportError) -> RunFailed:
        """``error`` as the user is to read it: which device is gone and why, if one is."""
        assert self._watch is not None
        return RunFailed(f"{self._named(self._watch.cause(EXPLAIN_SECONDS) or str(error))}; {WAYS_OUT[self.purpose]}")

    def _named(self, text: str) -> str:
        """``text`` of a transport, which knows the devices by rank alone, with their names."""
        names = {f"device {rank}": f"device '{name}'" for rank, name in enumerate([self._leader, *self.facts])}
        return re.sub(r"\bdevice \d+\b", lambda found: names.get(found[0], found[0]), text)

    def _check_emulated(self) -> None:
        """Make sure that all devices compute, or all emulate."""
        for name, facts in self.facts.items():
            if facts.emulates and self.config.emulate is None:
                raise BadInput(
                    f"device '{name}' emulates {readable(facts.emulates)}, and this one would compute: give --emulate "
                    "CARD here too, or start the worker without it"
                )
            if self.config.emulate is not None and not facts.emulates:
                raise BadInput(
                    f"device '{name}' computes, and this one emulates {self.config.emulate}: start its worker with "
                    "--emulate CARD, or leave --emulate out here"
                )

    def _start(self, gathering: Gathering, offers: dict[str, str]) -> None:
        """Send each worker its job."""
        self._leader = gathering.name
        leader = self.cluster.device(gathering.name)
        host, _ = split_address(self.cluster.listens_at)
        own = PeerAddress(address=leader.address or join_address(host, free_port(host)), key=gathering.key)
        others = [PeerAddress(address=offers[name], key=gathering.meeting.key_of(name)) for name in gathering.workers]
        config, blocked = _absolute(self.config).plain(), sorted(self.registry.blocked)
        for rank, name in enumerate(gathering.workers, start=1):
            job = Job(
                job=self._job,
                config=config,
                rank=rank,
                peers=[own, *others],
                threads=self.cluster.device(name).threads or 0,
                transport=self.cluster.transport,
                blocked=blocked,
                purpose=self.purpose,
            )
            if not gathering.send(name, job):
                raise RunFailed(f"device '{name}' has left before its job could be sent")
        self._own = Assignment(
            job=self._job,
            config=config,
            rank=0,
            peers=[(peer.address, peer.key) for peer in (own, *others)],
            transport=self.cluster.transport,
            keys=str(self.cluster.key_folder),
            cluster=self.cluster.name,
            threads=leader.threads or self._threads,
            blocked=blocked,
        )


def profile_of(name: str, facts: DeviceFacts) -> planned.DeviceProfile:
    """What planning goes by: what the device has measured, or the card that it emulates."""
    if facts.emulates:
        return card(facts.emulates).device(name)
    return planned.DeviceProfile(name, facts.gflops * 1e9, facts.memory_free_bytes or facts.memory_bytes)


def _reason(error: BaseException) -> str:
    return "it was stopped there" if isinstance(error, KeyboardInterrupt) else readable(error) or "it failed there"


def _absolute(config: RunConfig) -> RunConfig:
    """``config`` with whole paths, since workers are started in other folders."""

    def whole(path: str | None) -> str | None:
        return os.path.abspath(path) if path is not None and Path(path).exists() else path

    cache = config.cache
    if cache.dir is not None:
        cache = cache.model_copy(update={"dir": Path(os.path.abspath(cache.dir))})
    texts = {name: whole(getattr(config, name)) for name in ("model", "train", "eval")}
    changes = {**texts, "output": Path(os.path.abspath(config.output)), "cache": cache}
    return config.model_copy(update=changes)
