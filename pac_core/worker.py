"""A worker: a device that waits for leaders, takes part in their runs one after another, and stays up in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from pac_core.addresses import free_port, join_address, own_address, split_address
from pac_core.contracts.meeting import Came, Event, Left, Meeting, Said
from pac_core.control import (
    Busy,
    Call,
    Echo,
    End,
    Ended,
    Hello,
    Job,
    Leaving,
    Message,
    Offer,
    Probe,
    Ready,
    Refusal,
    Welcome,
    own_version,
    read,
    readable,
    write,
)
from pac_core.errors import BadInput, Refused, RunFailed
from pac_core.facts import DeviceFacts, refreshed
from pac_core.runtime.assignment import Assignment
from pac_core.runtime.job_process import STOPPED, JobProcess

IDLE_SECONDS = 1.0
BUSY_SECONDS = 0.05
CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told when it is started.

    Attributes:
        keys, cluster: its folder of keys, and whose allow-list there holds.
        listen: host or ``tcp://HOST:PORT`` where it listens for the other devices of a run; the address by which the
            leader is reached if empty.
        threads: for computing.
        cache_dir: folder for the cache, in the place of the leader's.
        once: end after one job.
        blocked: plugins to leave out.
        emulate: card of the device that it stands for; None computes.
    """

    keys: Path
    cluster: str
    listen: str
    threads: int
    cache_dir: Path | None = None
    once: bool = False
    blocked: tuple[str, ...] = ()
    emulate: str | None = None

    @property
    def disk(self) -> Path:
        """A folder on the disk where the cache is to lie."""
        return self.cache_dir or Path.home()


@dataclass(frozen=True)
class Held:
    """The job that a worker has, or keeps itself free for.

    Attributes:
        who: the leader, as the meeting calls it.
        name: that of the leader, for people.
        job: its name.
        began: when, in monotonic seconds.
        process: once the job has come.
        ready: whether the leader knows that the process is ready.
    """

    who: str
    name: str
    job: str
    began: float
    process: JobProcess | None = None
    ready: bool = False


class Worker:
    """Waits at a meeting and does what leaders say. As a context manager it ends its job and leaves on exit.

    Args:
        meeting: with its leaders.
        facts: of this device.
        options: as it was started.
        say: prints a line for people.
    """

    def __init__(
        self, meeting: Meeting, facts: DeviceFacts, options: WorkerOptions, say: Callable[[str], None]
    ) -> None:
        self._meeting = meeting
        self._facts = facts.model_copy(update={"emulates": options.emulate or ""})
        self._options = options
        self._say = say
        self._leaders: dict[str, str] = {}  # those that are there, and their names
        self._held: Held | None = None
        self._result: Ended | None = None
        self._calls: list[tuple[str, Call]] = []  # to be answered once the job has ended

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = "it was stopped there" if kind is KeyboardInterrupt else readable(error or "its work is done")
        if kind is not None:
            for who, name in self._leaders.items():
                if self._send(who, Leaving(reason=reason)):
                    self._say(f"the leader '{name}' has been told that this worker leaves")
        try:
            self._finish()
        finally:
            self._meeting.close(CLOSE_SECONDS)

    def run(self) -> None:
        """Work until interrupted, or for one job.

        Raises:
            Refused: a leader does not let this worker in, or cannot work with it.
            RunFailed: the one job failed.
            KeyboardInterrupt: stopped.
        """
        self._say("waiting for a leader")
        while True:
            for event in self._meeting.receive(BUSY_SECONDS if self._held else IDLE_SECONDS):
                self._heed(event)
            self._look_after()
            if self._options.once and self._result is not None:
                return _check(self._result)

    def _heed(self, event: Event) -> None:
        if isinstance(event, Came):
            self._leaders[event.who] = event.name
            facts = refreshed(self._facts, self._options.disk)
            self._send(event.who, Hello(version=own_version(), clock=time.time(), facts=facts))
        elif isinstance(event, Left):
            self._lost(event.who, event.reason)
        else:
            self._obey(event)

    def _lost(self, who: str, reason: str) -> None:
        name = self._leaders.pop(who, who)
        if self._held is None or self._held.who != who:
            return
        if self._held.process is None:
            self._held = None
            return
        self._say(f"lost the leader '{name}': {reason}; its job ends here")
        self._held.process.stop()

    def _obey(self, said: Said) -> None:
        message, who = read(said.message), said.who
        if isinstance(message, Welcome):
            self._say(f"the leader '{self._leaders.get(who, '')}' at {who} is there")
        elif isinstance(message, Refusal):
            raise Refused(f"the leader at {who} refuses this worker: {readable(message.reason)}")
        elif isinstance(message, Probe):
            self._send(who, Echo(number=message.number))
        elif isinstance(message, Call):
            self._answer(who, message)
        elif isinstance(message, Job):
            self._take(who, message)
        elif isinstance(message, End):
            self._end(who, message)

    def _answer(self, who: str, call: Call) -> None:
        held = self._held
        if held is not None and held.process is not None and held.process.stopping:
            self._calls.append((who, call))  # it is free in a moment
            return
        if held is not None:
            minutes = (time.monotonic() - held.began) / 60
            reason = f"it is busy with job '{held.job}' of '{held.name}' since {minutes:.0f} minutes"
            self._send(who, Busy(job=call.job, reason=reason))
            return
        try:
            address = self._address(who, call.address)
        except BadInput as error:
            self._send(who, Busy(job=call.job, reason=readable(error)))
            return
        self._held = Held(who, self._leaders.get(who, who), call.job, time.monotonic())
        self._send(who, Offer(job=call.job, address=address))

    def _address(self, leader: str, fixed: str) -> str:
        """Where to listen for the other devices: as the leader says, as the worker was told, or where there is room."""
        chosen = fixed or self._options.listen
        if chosen.startswith("tcp://"):
            free_port(*split_address(chosen))
            return chosen
        host = chosen or own_address(leader)
        return join_address(host, free_port(host))

    def _take(self, who: str, job: Job) -> None:
        held = self._held
        if held is None or (held.who, held.job) != (who, job.job) or held.process is not None:
            return
        self._say(f"job '{job.job}' of '{held.name}': device {job.rank} of {len(job.peers)}")
        self._result = None
        self._held = replace(held, process=JobProcess(self._assignment(job)))

    def _assignment(self, job: Job) -> Assignment:
        options, config = self._options, dict(job.config)
        config["emulate"] = options.emulate
        cache = config.get("cache", {})
        if options.cache_dir is not None and isinstance(cache, dict):
            config["cache"] = {**cache, "dir": str(options.cache_dir)}
        return Assignment(
            job=job.job,
            config=config,
            rank=job.rank,
            peers=[(peer.address, peer.key) for peer in job.peers],
            transport=job.transport,
            keys=str(options.keys),
            cluster=options.cluster,
            threads=job.threads or options.threads,
            blocked=sorted({*options.blocked, *job.blocked}),
            purpose=job.purpose,
        )

    def _end(self, who: str, end: End) -> None:
        held = self._held
        if held is None or (held.who, held.job) != (who, end.job):
            return
        if held.process is None:
            self._held = None
            return
        self._say(f"'{held.name}' ends job '{held.job}': {readable(end.reason)}")
        held.process.stop()

    def _look_after(self) -> None:
        held = self._held
        if held is None or held.process is None:
            return
        if not held.ready and held.process.ready():
            self._held = held = replace(held, ready=True)
            self._send(held.who, Ready(job=held.job))
        ended = None if held.process is None else held.process.ended()
        if ended is not None:
            self._note(held, *ended)

    def _note(self, held: Held, code: int, reason: str) -> None:
        """The process of a job has ended."""
        assert held.process is not None
        held.process.release()
        self._held, self._result = None, Ended(job=held.job, code=code, reason=reason[:1000])
        self._send(held.who, self._result)
        took = f"after {time.monotonic() - held.began:.0f} s"
        how = {0: "is done", STOPPED: "was stopped"}.get(code, f"failed: {readable(reason)}")
        self._say(f"job '{held.job}' {how}, {took}")
        calls, self._calls = self._calls, []
        for who, call in calls:
            if who in self._leaders:
                self._answer(who, call)

    def _finish(self) -> None:
        """End the process of the job, if there is one, and tell the leader."""
        if self._held is None or self._held.process is None:
            return
        self._held.process.stop()
        try:
            while self._held is not None:
                time.sleep(BUSY_SECONDS)
                self._look_after()
        finally:
            if self._held is not None and self._held.process is not None:
                self._held.process.release()

    def _send(self, who: str, message: Message) -> bool:
        return self._meeting.send(who, write(message))  # False for one that is gone, of which the meeting tells


def _check(result: Ended) -> None:
    if result.code == STOPPED:
        raise RunFailed(f"job '{result.job}' was stopped by its leader")
    if result.code != 0:
        raise RunFailed(f"job '{result.job}' failed: {readable(result.reason)}")
