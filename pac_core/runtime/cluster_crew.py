"""The devices of a run over several machines: gathered, given their parts, watched, and ended with the run."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from pac_core.addresses import free_port, join_address, split_address
from pac_core.cluster import Cluster, is_cluster
from pac_core.config import RunConfig
from pac_core.contracts import cluster as planned
from pac_core.contracts.meeting import Event, Left, Meeting
from pac_core.contracts.transport import Transport
from pac_core.control import End, Ended, Job, Leaving, Message, PeerAddress, Ready, read, readable, write
from pac_core.errors import BadInput, RunFailed, TransportError
from pac_core.facts import DeviceFacts, facts_here
from pac_core.registry import Registry
from pac_core.runtime.assignment import Assignment, connect
from pac_core.runtime.crew import Crew, device_count
from pac_core.runtime.gathering import Gathering
from pac_core.runtime.job_process import GRACE_SECONDS, STOPPED

log = logging.getLogger("pac")

READY_SECONDS = 600.0
"""How long a worker may take to load."""

FINISH_SECONDS = 300.0
"""How long workers may take to end by themselves after a run that went well."""

CUT_SECONDS = 1.5
"""How long after a device is known to be gone the transport is closed, if it has not noticed by itself."""

LEAVE_SECONDS = GRACE_SECONDS + 0.5
"""The same after a device has said that it leaves, which the run may yet use to stop at the end of a step."""

LINK_BITS, LINK_SECONDS = 1e8, 1e-3
"""What a link is taken to be for planning: bit a second, and seconds on the way."""

NEWS_SECONDS = 0.5
"""How long after the wish to stop the news may come that a device has left, from which the wish came then."""

EXPLAIN_SECONDS = 4.0
"""How long to wait for the reason of a failure: a process that has closed its transport takes a while to end."""

RESUME = "what was written is whole, and the same command with --resume goes on from there"


def crew_for(config: RunConfig, registry: Registry) -> Crew | ClusterCrew | None:
    """The other devices of a run, to be entered; None if there are none.

    Raises:
        BadInput: the configuration asks for what cannot be.
    """
    if not is_cluster(config.devices):
        count = device_count(config)
        return Crew(config, count, registry) if count > 1 else None
    if config.scheduler is not None:
        registry.get("schedulers", config.scheduler)  # before anyone is waited for
    cluster = Cluster.load(config.devices)
    if config.transport not in (None, cluster.transport):
        raise BadInput(f"--transport is {config.transport}, and that of {config.devices} {cluster.transport}")
    return ClusterCrew(config, cluster, registry)


@dataclass(frozen=True)
class Cause:
    """Why a run cannot go on.

    Attributes:
        weight: lower ones are nearer to the root of it.
        text: for people.
        cut_at: when to close the transport, in monotonic seconds.
    """

    weight: int
    text: str
    cut_at: float


class ClusterCrew:
    """The workers of a run that this process leads, in the shape of `pac_core.runtime.crew.Crew`.

    While entered, they are at work, and a thread watches over the control connections: a device that leaves ends the
    run at all others and here. Afterwards they wait for the next job, and nothing is left of this end.

    Attributes:
        facts: of the workers, by name, in the order of their ranks from 1; once entered.
    """

    remote = True
    """Whether the devices are other machines."""

    def __init__(self, config: RunConfig, cluster: Cluster, registry: Registry) -> None:
        self.config = config
        self.cluster = cluster
        self.registry = registry
        self.facts: dict[str, DeviceFacts] = {}
        self._job = f"{config.output.name}-{uuid.uuid4().hex[:6]}"[-100:]
        self._leader = ""
        self._own: Assignment | None = None
        self._transport: Transport | None = None
        self._watch: _Watch | None = None
        self._threads = torch.get_num_threads()

    @property
    def devices(self) -> planned.Cluster:
        """All devices by rank, this one too; once entered."""
        assert self._own is not None
        own = facts_here(self._leader, Path.home(), self._own.threads)
        found = {self._leader: own, **self.facts}
        profiles = [
            planned.DeviceProfile(name, facts.gflops * 1e9, facts.memory_free_bytes or facts.memory_bytes)
            for name, facts in found.items()
        ]
        return planned.Cluster(tuple(profiles), default=planned.Link(LINK_BITS, LINK_SECONDS))

    def __enter__(self) -> ClusterCrew:
        gathering = Gathering(self.cluster, self.registry)
        try:
            gathering.gather()
            gathering.check()
            offers = gathering.call(self._job)
            facts = gathering.facts()
            self.facts = {name: facts[name] for name in offers}
            self._start(gathering, offers)
        except BaseException:
            for name in gathering.workers:
                gathering.send(name, End(job=self._job, reason="it did not come about"))
            gathering.meeting.close(1.0)
            raise
        self._watch = _Watch(gathering.meeting, self._job, list(offers))
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
            raise RunFailed(f"{left}; {RESUME}") from error

    def connect(self) -> Transport:
        """Connect with all workers, once each is ready.

        Raises:
            RunFailed: one has ended instead.
            Refused, TransportTimeout: as the transport contract says.
        """
        assert self._watch is not None
        assert self._own is not None
        self._watch.wait_ready(READY_SECONDS)
        self._transport = connect(self._own, self.registry)
        self._watch.guard(self._transport)
        return self._transport

    def explain(self, error: TransportError) -> RunFailed:
        """``error`` as the user is to read it: which device is gone and why, if one is."""
        assert self._watch is not None
        return RunFailed(f"{self._watch.cause(EXPLAIN_SECONDS) or error}; {RESUME}")

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


class _Watch(threading.Thread):
    """Hears what workers say during a run. What it knows is guarded by ``_changed``; the meeting is its own."""

    def __init__(self, meeting: Meeting, job: str, workers: list[str]) -> None:
        super().__init__(name="pac-watch", daemon=True)
        self._meeting = meeting
        self._job = job
        self._workers = workers
        self._running = set(workers)
        self._ready: set[str] = set()
        self._causes: list[Cause] = []
        self._transport: Transport | None = None
        self._finished: str | None = None
        self._changed = threading.Condition()

    def run(self) -> None:
        try:
            while self._finished is None:
                self._hear(0.1)
                self._cut()
            self._part(self._finished)
        finally:
            self._meeting.close(1.0)

    def wait_ready(self, seconds: float) -> None:
        """Return once all workers are ready.

        Raises:
            RunFailed: one is gone, or takes too long.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._causes or self._ready.issuperset(self._workers), seconds)
            if self._causes:
                raise RunFailed(f"{self._first()}; {RESUME}")
            late = sorted(set(self._workers) - self._ready)
        if late:
            raise RunFailed(f"devices {', '.join(late)} were not ready in {seconds:.0f} s")

    def guard(self, transport: Transport) -> None:
        """Close ``transport`` when a device is gone and it does not notice."""
        with self._changed:
            self._transport = transport

    def cause(self, seconds: float = 0.0) -> str | None:
        """What is known to be wrong, waiting so long for it to be known."""
        with self._changed:
            self._changed.wait_for(lambda: self._causes, seconds)
            return self._first() if self._causes else None

    def departure(self, seconds: float) -> str | None:
        """Which device has left by itself, waiting so long for the news."""

        def left() -> list[str]:
            return [cause.text for cause in self._causes if cause.weight == 0]

        with self._changed:
            return next(iter(self._changed.wait_for(left, seconds)), None)

    def finish(self, reason: str) -> None:
        """End the jobs that still run, because of ``reason``; without one wait until they end. Then end the watch."""
        self._finished = reason
        self.join()

    def _first(self) -> str:
        return min(self._causes, key=lambda cause: cause.weight).text

    def _hear(self, seconds: float) -> None:
        for event in self._meeting.receive(seconds):
            with self._changed:
                self._heed(event)
                self._changed.notify_all()

    def _heed(self, event: Event) -> None:
        who = event.who
        if who not in self._running:
            return
        if isinstance(event, Left):
            self._gone(who, Cause(0, f"lost device '{who}': {event.reason}", time.monotonic() + CUT_SECONDS))
            return
        message = None if not hasattr(event, "message") else read(event.message)
        if isinstance(message, Leaving):
            text = f"lost device '{who}': {readable(message.reason)}"
            self._add(Cause(0, text, time.monotonic() + LEAVE_SECONDS), who)
        elif isinstance(message, Ready) and message.job == self._job:
            self._ready.add(who)
        elif isinstance(message, Ended) and message.job == self._job:
            self._ended(who, message)

    def _ended(self, who: str, ended: Ended) -> None:
        if ended.code in (0, STOPPED):
            self._running.discard(who)
            return
        reason = readable(ended.reason)
        weight = 3 if reason.startswith("lost device") else 1 if ended.code < 0 else 2
        self._gone(who, Cause(weight, f"lost device '{who}': {reason}", time.monotonic() + CUT_SECONDS))

    def _gone(self, who: str, cause: Cause) -> None:
        self._running.discard(who)
        self._add(cause, who)

    def _add(self, cause: Cause, who: str) -> None:
        first = not self._causes
        self._causes.append(cause)
        if first:
            self._end(self._running - {who}, cause.text)

    def _end(self, names: set[str], reason: str) -> None:
        message: Message = End(job=self._job, reason=reason[:1000])
        for name in names:
            self._meeting.send(name, write(message))

    def _cut(self) -> None:
        """Close the transport, which makes the run fail, when it is time."""
        with self._changed:
            due = bool(self._causes) and time.monotonic() >= min(cause.cut_at for cause in self._causes)
            transport, self._transport = (self._transport, None) if due else (None, self._transport)
        if transport is not None:
            transport.close()

    def _part(self, reason: str) -> None:
        """Let workers end, or make them."""
        for patience, words in ((0.0 if reason else FINISH_SECONDS, ""), (GRACE_SECONDS + 1.0, reason or "it is over")):
            if words:
                self._end(self._running, words)
            until = time.monotonic() + patience
            while self._running and time.monotonic() < until:
                self._hear(0.1)


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
