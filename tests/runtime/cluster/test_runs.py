"""Runs over workers that a user starts: the result of one machine, one job after another, and every way to end."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.errors import BadInput, RunFailed
from pac_core.events import EpochDone

GIVEN: dict[str, Any] = {"epochs": 30, "batch_size": 4}


def at_epoch(number: int, act: Callable[[], None]) -> Callable[[Any], None]:
    """An observer that acts when an epoch is done."""

    def observer(event: Any) -> None:
        if isinstance(event, EpochDone) and event.record["epoch"] == number:
            act()

    return observer


def test_one_job_after_another_with_the_result_of_processes_here(
    run: Any, weights: Any, home: Any, tmp_path: Path
) -> None:
    """The second is stopped with Ctrl-C at the leader, the third goes on from there."""
    here = run(**GIVEN, devices=2, output=tmp_path / "here", cache__dir=tmp_path / "here-cache")
    hand, cluster = home.hand(), str(home.file(devices=[{"name": "kitchen", "speed": 9}, {"name": "desk", "speed": 9}]))
    whole = run(**GIVEN, devices=cluster, output=tmp_path / "whole", cache__dir=tmp_path / "whole-cache")
    for name, expected in weights(here).items():
        torch.testing.assert_close(weights(whole)[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert len(whole.metrics["devices"]) == 2
    assert min(device["samples_filled"] for device in whole.metrics["devices"]) > 0
    hand.wait_for("job 'whole-")
    stopped: list[float] = []

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stopped.append(time.monotonic())

    with pytest.raises(KeyboardInterrupt):
        run(**GIVEN, devices=cluster, observers=[at_epoch(2, stop)])
    assert time.monotonic() - stopped[0] < 5
    hand.wait_for("was stopped, after")
    resumed = run(**GIVEN, devices=cluster, resume=True)
    assert all(torch.equal(weights(resumed)[name], expected) for name, expected in weights(whole).items())
    assert sum(line.endswith("device 1 of 2") for line in hand.said) == 3


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "lost device 'kitchen': its process ended, or the connection broke"),
        (signal.SIGINT, "lost device 'kitchen': it was stopped there"),
    ],
)
def test_a_worker_that_goes_ends_the_run_everywhere(
    run: Any, home: Any, gone: Any, tmp_path: Path, number: int, told: str
) -> None:
    kitchen, garage, cluster = home.worker("kitchen"), home.hand("garage"), str(home.file("kitchen", "garage"))
    ended: list[float] = []
    processes: list[int] = []

    def end() -> None:
        processes.extend(kitchen.children())
        os.kill(kitchen.process.pid, number)
        ended.append(time.monotonic())

    with pytest.raises(RunFailed, match=rf"^{told}; what was written is whole, .* --resume goes on") as failed:
        run(**GIVEN, devices=cluster, observers=[at_epoch(2, end)])
    assert time.monotonic() - ended[0] < 5
    assert "\n" not in str(failed.value)
    assert kitchen.process.wait(5) == (130 if number == signal.SIGINT else -9)
    assert time.monotonic() - ended[0] < 5
    assert len(processes) == 1
    assert all(gone(process) for process in processes)
    garage.wait_for("'desk' ends job")
    garage.wait_for("lost device 'kitchen'")
    if number == signal.SIGINT:
        assert "the leader 'desk' has been told that this worker leaves" in kitchen.printed.splitlines()
        assert kitchen.printed.splitlines()[-1] == "stopped"
        Path(cluster).write_text(home.file("garage").read_text())
        assert len(run(**GIVEN, devices=cluster, resume=True).metrics["epochs"]) == GIVEN["epochs"]


def test_a_leader_that_is_killed_leaves_no_job_behind(home: Any, config: Any, gone: Any, tmp_path: Path) -> None:
    kitchen = home.worker("kitchen")
    given = tmp_path / "run.yaml"
    given.write_text(json.dumps(config(**{**GIVEN, "epochs": 100000}, devices=str(home.file("kitchen"))).plain()))
    leader = home.start("-m", "pac_core.cli", "finetune", given)
    leader.wait_for("epoch 3 ")
    (job,) = kitchen.children()
    leader.process.kill()
    assert gone(job)
    kitchen.wait_for("lost the leader 'desk': its process ended, or the connection broke; its job ends here")
    assert kitchen.interrupt() < 5
    assert kitchen.process.returncode == 130


def test_ctrl_c_while_waiting_for_workers(home: Any, config: Any, tmp_path: Path) -> None:
    given = tmp_path / "run.yaml"
    given.write_text(json.dumps(config(devices=str(home.file("kitchen"))).plain()))
    leader = home.start("-m", "pac_core.cli", "finetune", given)
    leader.wait_for("waiting for kitchen at tcp://127.0.0.1:")
    assert leader.interrupt() < 5
    assert leader.process.returncode == 130
    assert "Traceback" not in leader.printed


def test_a_worker_for_one_job_says_why_it_failed(run: Any, home: Any, tmp_path: Path) -> None:
    """The worker has no such store: plugins are each device's own."""
    hand, cluster = home.hand(once=True, blocked=("pac-stores",)), str(home.file("kitchen"))
    with pytest.raises(RunFailed, match=r"lost device 'kitchen': store 'disk' is not known"):
        run(devices=cluster)
    hand.ends()
    assert isinstance(hand.failed, RunFailed)
    assert "store 'disk' is not known" in str(hand.failed)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"transport": "local"}, "--transport is local, and that of .*yaml zmq"),
        ({"devices": "none.yaml"}, "none.yaml: no such file; docs/cluster.md"),
        ({"scheduler": "other"}, "scheduler 'other' is not known"),
    ],
    ids=str,
)
def test_what_a_cluster_cannot_do_is_refused(run: Any, home: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        run(**{"devices": str(home.file("kitchen")), **changes})
