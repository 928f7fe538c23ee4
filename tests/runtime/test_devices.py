"""Runs over several processes of this machine: they end with one device's weights, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.errors import BadInput, RunFailed
from pac_core.events import DeviceJoined, DeviceLost, DeviceStatus, EpochDone, StepDone
from pac_core.runtime.crew import threads_each

EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0}


pytestmark = pytest.mark.usefixtures("place")


def left_behind(place: Path) -> list[str]:
    """Files in ``place``, and processes of this one that take part in a run."""
    return [*(str(path) for path in place.glob("pac-*")), *map(str, members())]


def members() -> list[int]:
    """Processes that this one has started to take part in a run."""
    running = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(p) for p in running if b"pac_core.member" in Path(f"/proc/{p}/cmdline").read_bytes()]


def at(phase: type, when: Callable[[Any], bool], act: Callable[[], None]) -> Callable[[Any], None]:
    """An observer that calls ``act`` once, at the first event that ``when`` picks."""
    done: list[bool] = []

    def observer(event: Any) -> None:
        if isinstance(event, phase) and when(event) and not done:
            done.append(True)
            act()

    return observer


@pytest.mark.parametrize(
    ("family", "count", "changes"),
    [
        ("bert", 2, {}),
        ("bert", 2, {"transport": "zmq"}),
        ("bert", 3, {"cache__store": "memory"}),
        ("bert", 2, {"fill": "train-while-fill", "cache__store": "memory"}),
        ("gpt2", 3, {}),
        ("t5", 2, {"cache__store": "lz4+memory"}),
    ],
)
def test_devices_end_with_the_weights_of_one(
    run: Any, weights: Any, texts: Any, answers: Any, write: Any, tmp_path: Path, place: Path, no_dropout: None,
    family: str, count: int, changes: dict[str, Any],
) -> None:  # fmt: skip
    """Batches of uneven texts, a last one with fewer rows than devices, micro-batches, clipping, and evaluation."""
    rows, held = (texts(25), texts(9, seed=1)) if family == "bert" else (answers(25), answers(9, seed=1))
    given = {**EXACT, "family": family, "epochs": 3, "micro_batch_size": 3, "optimizer__max_grad_norm": 0.1,
             "eval": write("eval.jsonl", held), "generation__eval_samples": 0}  # fmt: skip
    one = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    several = run(rows, **given, **changes, devices=count)
    for name, expected in weights(one).items():
        torch.testing.assert_close(weights(several)[name], expected, rtol=1e-9, atol=1e-9, msg=name)
    assert several.metrics["eval"] == pytest.approx(one.metrics["eval"], rel=1e-9)
    for mine, expected in zip(several.metrics["epochs"], one.metrics["epochs"], strict=True):
        assert mine["loss"] == pytest.approx(expected["loss"], rel=1e-9)
        assert mine["bytes_sent"] > 0
        assert mine["backbone_samples"] == expected["backbone_samples"]
    devices = several.metrics["devices"]
    assert several.metrics["plan"]["stages"][0]["devices"] == [device["name"] for device in devices]
    assert len(devices) == count
    assert {device["threads"] for device in devices} == {threads_each(count)}
    if "fill" not in changes:  # else the leader has run the backbone for the samples that set the scales
        assert sum(device["samples_filled"] for device in devices) == 25 + 9
    assert min(device["samples_filled"] for device in devices) >= 34 // count - 4
    assert min(device["seconds_busy"] for device in devices) > 0
    assert left_behind(place) == []


def test_devices_tell_how_they_are_doing(run: Any, place: Path) -> None:
    """The leader dawdles between epochs, which the other one spends waiting."""
    told: list[Any] = []

    def observer(event: Any) -> None:
        told.append(event)
        if isinstance(event, EpochDone):
            time.sleep(0.6)

    result = run(devices=2, epochs=6, observers=[observer])
    names = [device["name"] for device in result.metrics["devices"]]
    assert [event for event in told if isinstance(event, DeviceJoined)] == [DeviceJoined(name, 0) for name in names]
    statuses = [event for event in told if isinstance(event, DeviceStatus)]
    assert {event.device for event in statuses} == set(names)
    assert {event.phase for event in statuses} <= {"load", "fill", "cached", "evaluate"}
    assert min(event.busy for event in statuses if event.device == names[1]) < 0.5
    assert max(event.bytes_per_s for event in statuses) > 0
    report = (result.output / "report.html").read_text(encoding="utf-8")
    assert "By phase" in report
    assert report.count(f"<td>{names[1]}</td>") >= 2
    for device in result.metrics["devices"]:
        assert device["seconds_busy"] < device["seconds"]
        assert device["bytes_sent"] > 0
        assert device["peak_rss_bytes"] > 50 << 20
    assert left_behind(place) == []


def test_a_stopped_run_leaves_nothing_behind_and_goes_on(
    run: Any, weights: Any, tmp_path: Path, place: Path, texts: Any
) -> None:
    """With dropout: what is drawn depends on device, epoch and step."""
    given = {"devices": 2, "epochs": 30, "batch_size": 4}
    whole = run(**given, output=tmp_path / "whole", cache__dir=tmp_path / "whole-cache")
    stopped: list[float] = []

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stopped.append(time.monotonic())

    stops = at(EpochDone, lambda event: event.record["epoch"] == 2, stop)
    with pytest.raises(KeyboardInterrupt):
        run(**given, observers=[stops])
    assert time.monotonic() - stopped[0] < 5
    assert left_behind(place) == []
    assert not (tmp_path / "output" / "metrics.json").exists()
    resumed = run(**given, resume=True)
    assert all(torch.equal(weights(resumed)[name], expected) for name, expected in weights(whole).items())
    assert [e["bytes_sent"] for e in resumed.metrics["epochs"]] == [e["bytes_sent"] for e in whole.metrics["epochs"]]


@pytest.mark.parametrize("phase", ["fill", "cached"])
def test_a_killed_process_ends_the_run_in_one_line(
    run: Any, weights: Any, tmp_path: Path, place: Path, phase: str
) -> None:
    given = {"devices": 2, "epochs": 4, "batch_size": 4}
    killed: list[float] = []
    lost: list[DeviceLost] = []

    def kill() -> None:
        os.kill(members()[0], signal.SIGKILL)
        killed.append(time.monotonic())

    wanted = EpochDone if phase == "cached" else StepDone
    kills = at(wanted, lambda event: phase == "fill" or event.record["epoch"] == 2, kill)
    with pytest.raises(RunFailed, match=r"lost device 1: it was ended by SIGKILL; .* --resume goes on") as failed:
        run(**given, observers=[kills, lambda event: lost.append(event) if isinstance(event, DeviceLost) else None])
    assert [event.device.rpartition("/")[2] for event in lost] == ["1"]
    assert time.monotonic() - killed[0] < 5
    assert "\n" not in str(failed.value)
    assert left_behind(place) == []
    resumed = run(**given, resume=True)
    whole = run(**given, output=tmp_path / "whole", cache__dir=tmp_path / "whole-cache")
    for name, expected in weights(whole).items():  # a fill that goes on has other batches, so other roundings
        torch.testing.assert_close(weights(resumed)[name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_ctrl_c_while_filling(run: Any, place: Path) -> None:
    stops = at(StepDone, lambda event: event.phase == "fill", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(devices=2, observers=[stops])
    assert left_behind(place) == []
    assert run(devices=2, resume=True).metrics["epochs"]


LEADER = """
import os, signal, sys, json
from pac_core.config import RunConfig
from pac_core.finetune import FineTuner
from pac_core.events import EpochDone
def kill(event):
    if isinstance(event, EpochDone):
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        print(*children, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
FineTuner(RunConfig.build(json.loads(sys.argv[1])), observers=[kill]).run()
"""


def test_processes_end_with_a_killed_leader(config: Any, place: Path) -> None:
    given = json.dumps(config(devices=2).plain())
    environment = {**os.environ, "TMPDIR": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", LEADER, given], stdout=subprocess.PIPE, text=True, timeout=200, env=environment
    )
    children = [Path(f"/proc/{p}") for p in done.stdout.split()]
    assert done.returncode == -9
    assert len(children) >= 1
    until = time.monotonic() + 5
    while any(child.exists() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(child.exists() for child in children)
    assert left_behind(place) == []


def test_a_process_that_cannot_start_ends_the_run_with_its_reason(
    run: Any, tmp_path: Path, place: Path, monkeypatch: Any
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.exit('error: no memory')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(RunFailed, match="lost device 1: "):
        run(devices=2)
    assert left_behind(place) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"devices": "0"}, "--devices 0"),
        ({"devices": "two"}, "--devices two: give a number of processes on this machine, or a cluster file"),
        ({"devices": "none.yaml"}, "none.yaml: no such file"),
        ({"devices": 2, "transport": "locl"}, "did you mean 'local'"),
        ({"devices": 2, "train": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
    ids=str,
)
def test_what_devices_cannot_do_is_refused(run: Any, place: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        run(**changes)
    assert left_behind(place) == []
