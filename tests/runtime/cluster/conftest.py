"""A home cluster on the loopback interface: keys, a cluster file, and workers in processes of their own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pac_core.addresses import free_port, join_address
from pac_core.cluster import Cluster
from pac_core.contracts.meeting import MeetingOptions
from pac_core.facts import DeviceFacts, facts_here
from pac_core.keys import KeyFolder
from pac_core.testing.hosts import Host
from pac_core.worker import Worker, WorkerOptions

HOST = "127.0.0.1"


class Started:
    """A command at work, and what it has printed so far."""

    def __init__(self, folder: Path, arguments: list[str], host: Host | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as where tests run in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.folder = folder
        self.err = folder / "err"
        own = {"HOME": str(folder), "PAC_CACHE_DIR": str(folder / "cache")}  # of a device of its own
        command = [sys.executable, *arguments]
        with open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                command if host is None else host.command(*command),
                stdout=err,
                stderr=err,
                cwd=folder,
                env={**os.environ, **own},
            )

    @property
    def printed(self) -> str:
        return self.err.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Return once it has printed ``text``."""
        until = time.monotonic() + seconds
        while text not in self.printed:
            assert self.process.poll() is None, f"it ended: {self.printed}"
            assert time.monotonic() < until, f"no '{text}' in: {self.printed}"
            time.sleep(0.05)

    def interrupt(self) -> float:
        """Ctrl-C; returns the seconds until it has ended."""
        began = time.monotonic()
        os.kill(self.process.pid, signal.SIGINT)
        self.process.wait(20)
        return time.monotonic() - began

    def children(self) -> list[int]:
        """Processes that it has started."""
        return [int(p) for p in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]


class Hand:
    """A worker in a thread of this process; its jobs have processes of their own."""

    def __init__(self, home: "Home", name: str, leaders: list[str], **options: Any) -> None:
        from pac_plugins.transports import join_zmq

        keys = home.folders[name].path
        self.said: list[str] = []
        self.failed: BaseException | None = None
        self._meeting = join_zmq(MeetingOptions(leaders, keys))
        self._options = WorkerOptions(keys, "home", "", threads=1, **options)
        self._facts = home.facts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        receive = self._meeting.receive

        def until_stopped(seconds: float) -> Any:
            if self._stop.is_set():
                raise KeyboardInterrupt
            return receive(min(seconds, 0.1))

        self._meeting.receive = until_stopped  # type: ignore[method-assign]
        try:
            with Worker(self._meeting, self._facts, self._options, self.said.append) as worker:
                worker.run()
        except BaseException as error:
            self.failed = error

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Return once it has said ``text``."""
        until = time.monotonic() + seconds
        while not any(text in line for line in self.said):
            assert time.monotonic() < until, f"no '{text}' in: {self.said}"
            time.sleep(0.02)

    def ends(self, seconds: float = 30) -> None:
        """Wait until it ends by itself."""
        self._thread.join(seconds)
        assert not self._thread.is_alive()

    def stop(self) -> float:
        """End it as Ctrl-C would; returns the seconds that takes."""
        began = time.monotonic()
        self._stop.set()
        self.ends()
        return time.monotonic() - began


class Home:
    """Keys of a leader, the desk, workers and a stranger; all but the stranger know each other."""

    def __init__(self, path: Path, workers: Sequence[str] = ("garage", "kitchen"), address: str | None = None) -> None:
        from pac_plugins.transports import new_keys

        self.path = path
        self.address = address or join_address(HOST, free_port(HOST))
        self.folders = {name: KeyFolder(path / "keys" / name) for name in ("desk", *workers, "stranger")}
        self.keys = {name: folder.make(name, new_keys) for name, folder in self.folders.items()}
        for folder in self.folders.values():
            for name in ("desk", *workers):
                folder.allow(self.keys[name], name, "home")
        self.facts: DeviceFacts = facts_here("box", path, 1)
        self.started: list[Started] = []
        self.hands: list[Hand] = []

    def tree(self, *names: str, **changes: Any) -> dict[str, Any]:
        """A cluster of these devices, as plain data."""
        devices = [{"name": name} for name in names or ("kitchen",)]
        keys = str(self.folders["desk"].path)
        return {"leader": self.address, "keys": keys, "devices": devices, "wait": 30, **changes}

    def cluster(self, *names: str, **changes: Any) -> Cluster:
        return Cluster.build(self.tree(*names, **changes))

    def file(self, *names: str, **changes: Any) -> Path:
        file = self.path / f"cluster-{len(list(self.path.glob('cluster-*')))}.yaml"
        file.write_text(yaml.safe_dump(self.tree(*names, **changes)))
        return file

    def start(self, *arguments: object, folder: Path | None = None, host: Host | None = None) -> Started:
        """Python with these arguments, in a folder of its own, which is its home folder too."""
        folder = folder or self.path / "started" / str(len(self.started))
        self.started.append(Started(folder, [str(argument) for argument in arguments], host))
        return self.started[-1]

    def worker(self, name: str = "kitchen", *more: object, host: Host | None = None) -> Started:
        """``pac worker`` with this device's keys."""
        given = ["--leader", self.address, "--keys", self.folders[name].path, "--threads", 1, *more]
        return self.start("-m", "pac_core.cli", "worker", *given, host=host)

    def hand(self, name: str = "kitchen", *leaders: str, **options: Any) -> Hand:
        """A worker in a thread."""
        self.hands.append(Hand(self, name, list(leaders) or [self.address], **options))
        return self.hands[-1]


@pytest.fixture
def homes() -> Iterator[Callable[..., Home]]:
    """Makes `Home`s; what runs in them is gone in the end."""
    pytest.importorskip("zmq")
    made: list[Home] = []

    def make(*arguments: Any) -> Home:
        made.append(Home(*arguments))
        return made[-1]

    yield make
    for each in made:
        for hand in each.hands:
            hand.stop()
        for started in each.started:
            started.process.kill()
            started.process.wait()


@pytest.fixture
def home(homes: Any, tmp_path: Path) -> Home:
    made: Home = homes(tmp_path)
    return made
