"""A home cluster on the loopback interface: keys, a cluster file, and ``pac`` in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pac_core.addresses import free_port, join_address
from pac_core.keys import KeyFolder
from pac_core.testing.tiny import WORDS

HOST = "127.0.0.1"


class Started:
    """A ``pac`` command at work, with what it has printed so far in files."""

    def __init__(self, folder: Path, arguments: list[str], before: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out", folder / "err"
        code = f"{before}\nimport sys\nfrom pac_core.cli.app import main\nmain({arguments!r})"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=out, stderr=err, cwd=folder)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Return once it has printed ``text``."""
        until = time.monotonic() + seconds
        while text not in self.printed:
            assert self.process.poll() is None, f"it ended: {self.printed}"
            assert time.monotonic() < until, f"no '{text}' in: {self.printed}"
            time.sleep(0.05)

    @property
    def printed(self) -> str:
        return self.err.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return self.printed.strip().splitlines()[-1]

    def ends(self, seconds: float = 120) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def children(self) -> list[int]:
        """Processes that it has started."""
        return [int(p) for p in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]


class Home:
    """Keys of a leader, two workers and a stranger; the first three know each other."""

    def __init__(self, path: Path) -> None:
        from pac_plugins.transports import new_keys

        self.path = path
        self.address = join_address(HOST, free_port(HOST))
        self.folders = {name: KeyFolder(path / "keys" / name) for name in ("desk", "kitchen", "garage", "stranger")}
        self.keys = {name: folder.make(name, new_keys) for name, folder in self.folders.items()}
        for folder in self.folders.values():
            for name in ("desk", "kitchen", "garage"):
                folder.allow(self.keys[name], name, "home")
        self.started: list[Started] = []

    def file(self, *names: str, **changes: Any) -> Path:
        """A cluster file of these devices."""
        tree = {
            "leader": self.address,
            "keys": str(self.folders["desk"].path),
            "devices": [{"name": name} for name in names or ("kitchen",)],
            "wait": 40,
            **changes,
        }
        file = self.path / f"cluster-{len(list(self.path.glob('cluster-*')))}.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    def start(self, name: str, *arguments: object, before: str = "") -> Started:
        """``pac`` with these arguments, as the device of this name."""
        folder = self.path / "started" / f"{len(self.started)}-{name}"
        self.started.append(Started(folder, [str(a) for a in arguments], before))
        return self.started[-1]

    def worker(self, name: str = "kitchen", *more: object, before: str = "", leader: str | None = None) -> Started:
        given = ["worker", "--leader", leader or self.address, "--keys", self.folders[name].path, "--threads", 1]
        return self.start(name, *given, *more, before=before)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    pytest.importorskip("zmq")
    made = Home(tmp_path)
    yield made
    for started in made.started:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


@pytest.fixture
def rows() -> Callable[[int], list[dict[str, Any]]]:
    """Different texts with a class."""

    def of(count: int) -> list[dict[str, Any]]:
        draw = np.random.default_rng(0)
        texts = [" ".join(draw.choice(WORDS, draw.integers(2, 13))) for _ in range(count)]
        return [{"text": f"{text} {WORDS[i % 40]}", "label": "ab"[i % 2]} for i, text in enumerate(texts)]

    return of


@pytest.fixture
def finetune(home: Home, checkpoint: Any, tmp_path: Path, rows: Any) -> Callable[..., list[object]]:
    """Arguments of a run that takes about a second; more can be given."""
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows(24)))

    def of(
        devices: object, output: str = "output", cache: str = "cache", epochs: int = 2, *more: object
    ) -> list[object]:
        return [
            "finetune", "--model", checkpoint("bert"), "--train", train, "--output", tmp_path / output,
            "--devices", devices, "--epochs", epochs, "--batch-size", 8, "--reduction", 4,
            "--cache-dir", tmp_path / cache, "--cache-dtype", "float32", "--json", *more,
        ]  # fmt: skip

    return of


def gone(process: int, seconds: float = 5) -> bool:
    """Whether a process is gone, now or soon."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def interrupt(started: Started) -> float:
    """Ctrl-C; returns the seconds until it has ended."""
    began = time.monotonic()
    os.kill(started.process.pid, signal.SIGINT)
    started.ends(20)
    return time.monotonic() - began
