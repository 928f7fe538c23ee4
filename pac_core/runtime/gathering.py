"""The leader's side before a run: who is there, who is free, and how good the links are."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from pac_core.addresses import interface_address
from pac_core.cluster import Cluster
from pac_core.contracts.meeting import Came, Event, Left, Meeting, MeetingOptions
from pac_core.control import (
    Busy,
    Call,
    Echo,
    Hello,
    Leaving,
    Message,
    Offer,
    Probe,
    Refusal,
    Welcome,
    own_version,
    read,
    readable,
    write,
)
from pac_core.errors import BadInput, RunFailed
from pac_core.facts import DeviceFacts
from pac_core.keys import KeyFolder
from pac_core.registry import Registry

log = logging.getLogger("pac")

CLOCK_SECONDS = 5.0
"""Beyond which a worker's clock is said to differ. Nothing in a run depends on it; logs, and which entries of a cache
were used longest ago, do."""

ANSWER_SECONDS = 10.0
"""How long a worker that is there may take to answer."""

QUIET_SECONDS = 3.0
"""How long to wait before saying for whom."""

PROBE_BYTES = 1 << 19
PROBES = 8
PINGS = 5
CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class LinkFacts:
    """A link as measured over the control connection, which is encrypted by one thread at each end.

    Attributes:
        latency_seconds: of a small message, there and back, halved.
        bytes_per_second: from the leader to the device.
    """

    latency_seconds: float
    bytes_per_second: float


@dataclass
class Attendance:
    """Who has come to a meeting.

    Attributes:
        here: what each worker has said of itself, by name.
        refused: why others cannot take part.
    """

    here: dict[str, Hello] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Gathering:
    """A leader that waits for the workers of its cluster. As a context manager it leaves the meeting on exit.

    Attributes:
        meeting: for `pac_core.runtime.cluster_crew`, which goes on with it.
        name: of the leader.
        workers: names of the devices that are to come, in the order of the cluster file.
        attendance: who has come so far.

    Raises:
        BadInput: the cluster's keys, transport or address cannot be used.
    """

    def __init__(self, cluster: Cluster, registry: Registry) -> None:
        host = getattr(registry.get("transports", cluster.transport), "host_meeting", None)
        if host is None:
            raise BadInput(f"transport '{cluster.transport}' is not for workers that people start; choose zmq")
        self.cluster = cluster
        self.name, self.key = KeyFolder(cluster.key_folder).name_and_key()
        self.workers = [device.name for device in cluster.workers(self.name)]
        self._check_allowed()
        self.attendance = Attendance()
        address = cluster.listens_at
        self.meeting: Meeting = host(
            MeetingOptions(
                addresses=[address],
                keys=cluster.key_folder,
                cluster=cluster.name,
                discovery=cluster.discovery == "mdns",
                interface=interface_address(cluster.interface) if cluster.interface else "",
            )
        )

    def __enter__(self) -> Gathering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.meeting.close(CLOSE_SECONDS)

    def _check_allowed(self) -> None:
        allowed = set(KeyFolder(self.cluster.key_folder).allowed(self.cluster.name).values())
        unknown = [name for name in self.workers if name not in allowed]
        if unknown:
            raise BadInput(
                f"device '{unknown[0]}' is not on the allow-list of cluster '{self.cluster.name}' in "
                f"{self.cluster.key_folder}, which has {', '.join(sorted(allowed)) or 'nobody'}; put it there with "
                "'pac keys allow', or correct its name"
            )

    def gather(self) -> Attendance:
        """Wait until all workers are there or refused, or for as long as the cluster file says."""
        began, said = time.monotonic(), False
        until = began + self.cluster.wait
        while self.missing() and time.monotonic() < until:
            for event in self.meeting.receive(0.2):
                self.heed(event)
            if not said and self.missing() and time.monotonic() - began > QUIET_SECONDS:
                log.warning("waiting for %s at %s", ", ".join(self.missing()), self.cluster.leader)
                said = True
        return self.attendance

    def missing(self) -> list[str]:
        """Workers that are neither there nor refused."""
        return [name for name in self.workers if name not in self.attendance.here | self.attendance.refused]

    def heed(self, event: Event) -> Message | None:
        """Keep the attendance up to date; returns the message, if the event is one of somebody who is there."""
        here = self.attendance.here
        if isinstance(event, Came):
            return None
        if isinstance(event, Left):
            here.pop(event.who, None)
            return None
        message = read(event.message)
        if isinstance(message, Hello):
            self._welcome(event.who, message)
        elif message is None and event.who not in here:
            self._refuse(event.who, "it speaks of what this version does not know; install the same version of PAC")
        return message if event.who in here else None

    def _welcome(self, who: str, hello: Hello) -> None:
        if hello.version != own_version():
            theirs = readable(hello.version)
            self._refuse(who, f"its PAC is version {theirs}, and that of '{self.name}' {own_version()}")
            return
        ahead = hello.clock - time.time()
        if abs(ahead) > CLOCK_SECONDS:
            way = "ahead of" if ahead > 0 else "behind"
            log.warning("the clock of '%s' is %.0f s %s this one: times in logs will not fit", who, abs(ahead), way)
        if who not in self.workers:
            log.warning("'%s' is there, but not in the cluster file", who)
        self.attendance.here[who] = hello
        self.attendance.refused.pop(who, None)
        self.send(who, Welcome(leader=self.name))

    def _refuse(self, who: str, reason: str) -> None:
        self.attendance.refused[who] = reason
        self.send(who, Refusal(reason=reason))

    def send(self, who: str, message: Message) -> bool:
        """Send without waiting; False if it cannot be sent."""
        return self.meeting.send(who, write(message))

    def check(self) -> None:
        """Make sure that all workers are there.

        Raises:
            BadInput: one is refused.
            RunFailed: one is missing.
        """
        for name, reason in self.attendance.refused.items():
            if name in self.workers:
                raise BadInput(f"device '{name}' cannot take part: {reason}")
        if self.missing():
            raise RunFailed(
                f"{_devices(self.missing())} did not come to {self.cluster.leader} in {self.cluster.wait:.0f} s; "
                f"there: pac worker --leader {self.cluster.leader} --keys DIR"
            )

    def call(self, job: str) -> dict[str, str]:
        """Ask all workers to keep themselves free for a job; returns where each will listen, by name.

        Raises:
            RunFailed: one is busy, gone, or does not answer.
        """
        for name in self.workers:
            self.send(name, Call(job=job, address=self.cluster.device(name).address or ""))
        offers: dict[str, str] = {}

        def note(who: str, message: Message) -> None:
            if isinstance(message, Busy) and message.job == job:
                raise RunFailed(f"device '{who}' cannot take part: {readable(message.reason)}")
            if isinstance(message, Offer) and message.job == job and who in self.workers:
                offers[who] = message.address

        self._wait(lambda: len(offers) == len(self.workers), note, self.workers)
        return offers

    def measure(self, name: str) -> LinkFacts:
        """Latency and speed of the link to a worker that is there; takes a few MB. Errors as in `call`."""
        seconds = [self._round_trip(name, [b""]) for _ in range(PINGS)]
        loaded = self._round_trip(name, [bytes(PROBE_BYTES)] * PROBES)
        latency = statistics.median(seconds)
        return LinkFacts(latency / 2, PROBE_BYTES * PROBES / max(loaded - latency, 1e-6))

    def _round_trip(self, name: str, parts: Sequence[bytes]) -> float:
        """Seconds until all of ``parts`` are answered."""
        echoes: set[int] = set()

        def note(who: str, message: Message) -> None:
            if who == name and isinstance(message, Echo):
                echoes.add(message.number)

        began = time.perf_counter()
        for number, part in enumerate(parts):
            self.send(name, Probe(number=number, data=part))
        self._wait(lambda: len(echoes) == len(parts), note, [name])
        return time.perf_counter() - began

    def _wait(self, done: Callable[[], bool], note: Callable[[str, Message], None], names: Sequence[str]) -> None:
        until = time.monotonic() + ANSWER_SECONDS
        while not done():
            for event in self.meeting.receive(0.2):
                message = self.heed(event)
                if isinstance(message, Leaving):
                    raise RunFailed(f"device '{event.who}' has left: {readable(message.reason)}")
                if message is not None:
                    note(event.who, message)
                if isinstance(event, Left) and event.who in names:
                    raise RunFailed(f"device '{event.who}' has left: {event.reason}")
            if time.monotonic() >= until:
                raise RunFailed(f"{_devices(names)} did not answer in {ANSWER_SECONDS:.0f} s")

    def facts(self) -> dict[str, DeviceFacts]:
        """What the workers that are there say of themselves, with what the cluster file says instead."""
        return {name: facts_given(self.cluster, hello.facts, name) for name, hello in self.attendance.here.items()}


def facts_given(cluster: Cluster, facts: DeviceFacts, name: str) -> DeviceFacts:
    """``facts`` of the device ``name``, with what the cluster file says instead."""
    device = cluster.device(name)
    given = {"threads": device.threads, "memory_free_bytes": device.memory, "gflops": device.speed}
    return facts.model_copy(update={key: value for key, value in given.items() if value is not None})


def _devices(names: Sequence[str]) -> str:
    return f"device '{names[0]}'" if len(names) == 1 else f"devices {', '.join(names)}"
