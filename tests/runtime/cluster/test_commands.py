"""``pac worker`` and ``pac devices``: what they print, how they end, and what they refuse."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pac_core.cli.app import run
from pac_core.worker import IDLE_SECONDS


@pytest.fixture
def pac(capfd: pytest.CaptureFixture[str]) -> Any:
    """Exit code, stdout and stderr of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return call


def test_what_a_worker_emulates_is_shown(pac: Any, home: Any) -> None:
    home.hand("kitchen", emulate="jetson-nano")
    code, out, _ = pac("devices", "--cluster", home.file("kitchen"), "--json")
    assert [device["emulates"] for device in json.loads(out)["devices"]] == ["", "jetson-nano"]
    assert code == 0
    assert "kitchen: emulates jetson-nano\n" in pac("devices", "--cluster", home.file("kitchen"))[1]


def test_devices_of_a_cluster(pac: Any, home: Any) -> None:
    kitchen = home.worker("kitchen", "--name", "stove")
    code, out, _ = pac("devices", "--cluster", home.file("kitchen"), "--json")
    (line,) = out.splitlines()
    desk, found = json.loads(line)["devices"]
    assert (code, desk["name"], desk["state"], found["name"], found["state"]) == (
        0,
        "desk",
        "leader",
        "kitchen",
        "ready",
    )
    for device in (desk, found):
        assert {"cores", "memory_bytes", "disk_free_bytes", "accelerator", "gflops", "system"} <= device.keys()
        assert device["gflops"] > 0
    assert desk["link"] is None
    assert found["link"]["bytes_per_second"] > 1e6
    assert 0 < found["link"]["latency_seconds"] < 1
    code, out, _ = pac("devices", "--cluster", home.file("garage", "kitchen", wait=5))
    assert code == 1
    assert "garage: it did not come in 5 s" in out
    assert "MB/s" in out
    assert "worker 'stove': 1 threads" in kitchen.printed
    time.sleep(2 * IDLE_SECONDS)  # until the worker has seen the leader go
    assert kitchen.interrupt() < 5
    assert (kitchen.process.returncode, kitchen.printed.splitlines()[-1]) == (130, "stopped")
    assert "has been told" not in kitchen.printed  # there is no leader any more


def test_this_device(pac: Any) -> None:
    code, out, _ = pac("devices", "--json")
    (device,) = json.loads(out)["devices"]
    assert (code, device["state"], device["link"]) == (0, "here", None)
    code, out, _ = pac("devices")
    assert code == 0
    assert "GFLOP/s" in out


def test_a_worker_that_waits_takes_little_memory(home: Any) -> None:
    """torch is for the processes of its jobs."""
    worker = home.worker("kitchen")
    worker.wait_for("waiting for a leader")
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (kilobytes,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert kilobytes < 120_000
    assert "torch" in sys.modules


def test_a_worker_whose_leader_has_no_address_says_so(home: Any) -> None:
    worker = home.start(
        *("-m", "pac_core.cli", "worker", "--leader", "tcp://desk.invalid:7077"),
        *("--keys", home.folders["kitchen"].path, "--threads", 1),
    )
    worker.wait_for("waiting for a leader")
    assert "there is no way to 'desk.invalid': " in worker.printed
    assert worker.interrupt() < 5


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("stranger", "does not let this device's key in; there: pac keys allow FILE"),
        ("desk", "no leader is on the allow-list"),
    ],
)
def test_a_worker_whose_key_is_wrong_ends_with_a_line(home: Any, name: str, told: str) -> None:
    from pac_core.registry import Registry
    from pac_core.runtime.gathering import Gathering

    if name == "desk":
        worker = home.worker(name, "--cluster", "office")
        assert worker.process.wait(60) == 2
    else:
        worker = home.worker(name)
        with Gathering(home.cluster("kitchen"), Registry()) as gathering:
            while worker.process.poll() is None:
                gathering.meeting.receive(0.2)
        assert worker.process.returncode == 2
    assert told in worker.printed
    assert worker.printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in worker.printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["worker"], "give --leader tcp://HOST:PORT, or --discover"),
        (["worker", "--leader", "desk:7077", "--keys", "KEYS"], "address 'desk:7077' cannot be used"),
        (["worker", "--leader", "tcp://a:1", "--keys", "/nowhere"], "there are no keys in /nowhere"),
        (["worker", "--leader", "tcp://a:1", "--transport", "local"], "is not for workers that people start"),
        (["worker", "--leader", "tcp://a:1", "--listen", "eth99"], "cannot listen at 'eth99'"),
        (["worker", "--leader", "tcp://a:1", "--listen", "tcp://192.0.2.1:7000"], "cannot listen at '192.0.2.1'"),
        (["devices", "--cluster", "none.yaml"], "none.yaml: no such file"),
        (["worker", "--leader", "tcp://127.0.0.1:1", "--emulate", "jetson"], "device card 'jetson' is not known"),
        (["keys", "allow", "none.pub"], "none.pub: no such file"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(pac: Any, home: Any, arguments: list[str], told: str) -> None:
    keys = str(home.folders["kitchen"].path)
    code, out, err = pac(*[keys if argument == "KEYS" else argument for argument in arguments])
    (line,) = err.splitlines()
    assert (code, out) == (2, "")
    assert told in line
