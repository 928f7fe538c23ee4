"""Runs that torchrun starts, with torchrun itself: one device's weights, one voice, and an end of all together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pac_core.addresses import free_port

LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
PAC = ["-m", "pac_core.cli"]
EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0}
PATIENCE = 200


class Launched:
    """torchrun at work on a run; what it and its processes print is in files."""

    def __init__(self, folder: Path, options: list[str], program: list[str], arguments: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        self._out, self._err = folder / "out", folder / "err"
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as where tests run in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            command = [*LAUNCHER, *options, *program, "finetune", *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, env=environment)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def own_lines(self) -> list[str]:
        """What our processes have printed to stderr, without an epoch's line; the rest is torchrun's, and begins with
        the letter of a log's level or is its report of a failure."""
        lines = self.err.partition("Traceback (most recent call last)")[0].splitlines()
        return [line for line in lines if not re.match(r"([WEI]\d{4} |epoch |trainable )", line)]

    def ranks(self) -> dict[int, int]:
        """Its processes, by rank."""
        found = {}
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            pairs = [pair.partition(b"=") for pair in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")]
            environment = {name: value for name, _, value in pairs}
            if b"RANK" in environment:
                found[int(environment[b"RANK"])] = int(child)
        return found

    def wait_for(self, text: str) -> None:
        """Return once it has printed ``text``."""
        until = time.monotonic() + PATIENCE
        while text not in self.err:
            assert self.process.poll() is None, f"it ended: {self.err}"
            assert time.monotonic() < until, f"no '{text}' in: {self.err}"
            time.sleep(0.02)

    def ends(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts torchrun for a configuration, whose devices it says."""
    launched: list[Launched] = []

    def started(config: Any, *options: str, program: list[str] = PAC, arguments: list[str] | None = None) -> Launched:
        tree = {name: value for name, value in config.plain().items() if name != "devices"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        given = [str(tmp_path / "run.yaml"), "--transport", "torch", *(arguments or [])]
        how = list(options) or ["--standalone", "--nproc-per-node", "2"]
        launched.append(Launched(tmp_path / f"launched{len(launched)}", how, program, given))
        return launched[-1]

    yield started
    for each in launched:
        if each.process.poll() is None:
            for process in each.ranks().values():
                os.kill(process, signal.SIGKILL)
            each.process.kill()
            each.process.wait()


@pytest.fixture
def one(run: Any, weights: Any, tmp_path: Path, no_dropout: None) -> Callable[..., dict[str, torch.Tensor]]:
    """The weights of a run of one device."""

    def of(rows: Any, **given: Any) -> dict[str, torch.Tensor]:
        result = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "one-cache")
        found: dict[str, torch.Tensor] = weights(result)
        return found

    return of


def equal(mine: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, values in expected.items():
        torch.testing.assert_close(mine[name], values, rtol=1e-9, atol=1e-9, msg=name)


def test_whole_models_end_with_the_weights_of_one_and_only_the_leader_speaks(
    launch: Launch, config: Any, one: Any, weights: Any, texts: Any, write: Any, tmp_path: Path
) -> None:
    given = {**EXACT, "epochs": 3, "eval": write("eval.jsonl", texts(9, seed=1))}
    pac = ["--no-python", str(Path(sys.executable).with_name("pac"))]
    launched = launch(config(texts(25), **given), program=pac, arguments=["--json"])
    assert launched.ends() == 0, launched.err
    equal(weights(tmp_path / "output"), one(texts(25), **given))
    metrics = json.loads(launched.out)
    assert [device["name"].rpartition("/")[2] for device in metrics["devices"]] == ["0", "1"]
    assert sum(device["samples_filled"] for device in metrics["devices"]) == 25 + 9
    assert {device["threads"] for device in metrics["devices"]} == {1}
    assert launched.own_lines() == []
    assert len(re.findall("^epoch", launched.err, re.MULTILINE)) == 3


def test_stages_end_with_the_weights_of_one(
    launch: Launch, config: Any, one: Any, weights: Any, texts: Any, tmp_path: Path
) -> None:
    given = {**EXACT, "fill": "train-while-fill", "cache__store": "memory"}
    launched = launch(config(texts(25), **given), arguments=["--scheduler", "pipeline"])
    assert launched.ends() == 0, launched.err
    equal(weights(tmp_path / "output"), one(texts(25), **given))
    plan = json.loads((tmp_path / "output" / "plan.json").read_text())
    assert [len(stage["devices"]) for stage in plan["stages"]] == [1, 1]
    assert [line.partition(";")[0] for line in launched.own_lines()] == [f"saved to {tmp_path / 'output'}"]


def test_a_second_machine_is_sent_the_model(
    launch: Launch, config: Any, one: Any, weights: Any, texts: Any, checkpoint: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two torchruns, each a machine to the processes; the second is in a folder that has neither model nor data."""
    expected, first = one(texts(25), **EXACT), tmp_path / "launched0"
    first.mkdir()
    (first / "model").symlink_to(checkpoint("bert"))
    (tmp_path / "train.jsonl").rename(first / "train.jsonl")
    given = config([], **EXACT, model="model", train="train.jsonl", output="output", cache__dir="cache")
    port = str(free_port("127.0.0.1"))
    how = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "caches"))
    nodes = [launch(given, *how, "--node-rank", str(node)) for node in range(2)]
    assert [node.ends() for node in nodes] == [0, 0], "".join(node.err for node in nodes)
    equal(weights(first / "output"), expected)
    assert nodes[1].own_lines() == []
    assert sorted(path.name for path in (tmp_path / "launched1").iterdir()) == ["cache", "err", "out"]
    assert list((tmp_path / "caches" / "models").iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_device_ends_the_run_in_one_line(launch: Launch, config: Any, gone: Any, rank: int) -> None:
    launched = launch(config(epochs=2000))
    launched.wait_for("epoch 3 ")
    ranks = launched.ranks()
    os.kill(ranks[rank], signal.SIGKILL)
    assert launched.ends() == 1
    assert all(gone(process) for process in ranks.values())
    *told, line = launched.own_lines()
    assert line.startswith(f"error: lost device {rank}: its process ended")
    assert line.endswith("the same command with --resume goes on from there")
    assert all(re.match("lost device .*/1: its process ended", each) for each in told)
    assert "pac_core/" not in launched.err  # no traceback of ours


def test_ctrl_c_ends_all_and_says_how_to_go_on(launch: Launch, config: Any, gone: Any, tmp_path: Path) -> None:
    launched = launch(config(epochs=2000))
    launched.wait_for("epoch 3 ")
    ranks = launched.ranks()
    launched.process.send_signal(signal.SIGINT)
    launched.ends()
    assert all(gone(process) for process in ranks.values())
    assert launched.own_lines() == ["stopped; the same command with --resume goes on from here"]
    assert "pac_core/" not in launched.err
    assert (tmp_path / "output" / "checkpoint" / "state.safetensors").exists()


def test_torchrun_starts_all_anew_when_one_is_killed_and_the_run_goes_on(
    launch: Launch, config: Any, one: Any, weights: Any, texts: Any, tmp_path: Path
) -> None:
    given = {**EXACT, "epochs": 20}
    expected = one(texts(25), **given)
    how = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    launched = launch(config(texts(25), **given), *how, arguments=["--resume"])
    launched.wait_for("epoch 3 ")
    os.kill(launched.ranks()[1], signal.SIGKILL)
    assert launched.ends() == 0, launched.err
    told = [int(number) for number in re.findall(r"^epoch (\d+) ", launched.err, re.MULTILINE)]
    assert sorted(told) == list(range(1, 21)), "no epoch is run twice"
    equal(weights(tmp_path / "output"), expected)
