"""Runs that are stopped, killed, damaged or out of room: what is left is whole, and going on ends the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.cache import ActivationCache
from pac_core.errors import BadInput, RunFailed
from pac_core.events import EpochDone, StepDone
from pac_core.finetune import FineTuner
from pac_core.registry import Registry
from pac_core.runtime import load

# Stops itself once: by SIGNAL, in step STEP of epoch EPOCH, or between two batches of the fill.
CHILD = """
import json, os, signal, sys, time
from pac_core.config import RunConfig
from pac_core.finetune import FineTuner
from pac_core.runtime import train
tree, number, epoch, step = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
train.CHECKPOINT_SECONDS = 0.0
plain = train.optimizer_step
def stopping(trainer, *rest):
    done = stopping.done = stopping.done + 1
    if done == (epoch - 1) * trainer.steps_per_epoch + step:
        os.kill(os.getpid(), number)
    return plain(trainer, *rest)
stopping.done = 0
train.optimizer_step = stopping
try:
    FineTuner(RunConfig.build(tree)).run()
except KeyboardInterrupt:
    sys.exit(130)
"""


def equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def stop(config: Any, number: int, epoch: int, step: int) -> int:
    """Run ``config`` in a process of its own that gets signal ``number`` in that step; returns its exit status."""
    arguments = [json.dumps(config.plain()), str(int(number)), str(epoch), str(step)]
    return subprocess.run([sys.executable, "-c", CHILD, *arguments], timeout=120, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["SIGINT", "SIGKILL"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    config: Any, run: Any, weights: Any, texts: Any, write: Any, tmp_path: Path, number: int, status: int, fill: str
) -> None:
    given = {"eval": write("eval.jsonl", texts(8, seed=1)), "epochs": 3, "fill": fill}
    whole = run(**given, output=tmp_path / "whole", cache__dir=tmp_path / "whole-cache")
    epoch = 1 if fill == "train-while-fill" else 2
    assert stop(config(**given), number, epoch, 2) == status
    assert not (tmp_path / "output" / "metrics.json").exists()
    resumed = run(**given, resume=True)
    assert [e["epoch"] for e in resumed.metrics["epochs"]] == [1, 2, 3]
    if fill == "prefill":
        assert equal(weights(resumed), weights(whole))
        assert resumed.metrics["eval"] == whole.metrics["eval"]
        assert [e["loss"] for e in resumed.metrics["epochs"]] == [e["loss"] for e in whole.metrics["epochs"]]
    else:
        for name, expected in weights(whole).items():
            torch.testing.assert_close(weights(resumed)[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_stopped_between_epochs_resumes(config: Any, run: Any, weights: Any, tmp_path: Path) -> None:
    whole = run(epochs=3, output=tmp_path / "whole", cache__dir=tmp_path / "whole-cache")

    def stops(event: Any) -> None:
        if isinstance(event, EpochDone) and event.record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(epochs=3, observers=[stops])
    assert equal(weights(run(epochs=3, resume=True)), weights(whole))


def test_a_run_stopped_while_filling_keeps_what_it_filled(config: Any, run: Any, texts: Any, monkeypatch: Any) -> None:
    from pac_core.taps import TapReader

    fill = TapReader.fill
    monkeypatch.setattr(TapReader, "fill", lambda self, examples, planned: fill(self, examples, 8, planned))

    def stops(event: Any) -> None:
        if isinstance(event, StepDone) and event.phase == "fill" and event.done == 16:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(observers=[stops])
    assert run(resume=True).metrics["epochs"][0]["backbone_samples"] == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_of_signals_come_back(run: Any, number: int) -> None:
    before = signal.getsignal(number)
    run(epochs=1)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"optimizer__lr": 0.1}, "optimizer"), ({"seed": 5}, "seed"), ({"epochs": 4}, "epochs")],
    ids=["lr", "seed", "epochs"],
)
def test_resuming_with_other_settings_is_refused(run: Any, changes: dict[str, Any], name: str) -> None:
    run()
    with pytest.raises(BadInput, match=f"cannot resume: {name} was"):
        run(resume=True, **changes)


def test_resuming_with_other_data_is_refused(run: Any, texts: Any) -> None:
    run()
    with pytest.raises(BadInput, match="cannot resume: train data"):
        run(texts(24, seed=9), resume=True)


def test_a_damaged_checkpoint_is_refused(run: Any, tmp_path: Path) -> None:
    run()
    file = tmp_path / "output" / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not a usable checkpoint"):
        run(resume=True)


def test_resuming_without_a_checkpoint_starts_anew(run: Any) -> None:
    assert len(run(resume=True).metrics["epochs"]) == 2


def test_a_new_run_does_not_leave_an_older_runs_checkpoint_behind(run: Any, tmp_path: Path) -> None:
    run()

    def stops(event: Any) -> None:
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(observers=[stops], epochs=2)
    assert not (tmp_path / "output" / "checkpoint" / "state.safetensors").exists()


# Damage.


def flip(file: Path, start: int) -> None:
    with open(file, "r+b") as content:
        content.seek(start)
        byte = content.read(1)
        content.seek(start)
        content.write(bytes([byte[0] ^ 0xFF]))


def test_a_damaged_entry_on_disk_is_computed_again(run: Any, weights: Any, tmp_path: Path) -> None:
    whole = run()
    shard = max((tmp_path / "cache").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    flip(shard, shard.stat().st_size // 2)
    again = run(output=tmp_path / "again")
    assert again.metrics["cache"]["damaged"] == 1
    assert sum(e["backbone_samples"] for e in again.metrics["epochs"]) == 1
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(again)[name], expected, rtol=1e-3, atol=1e-4, msg=name)
    assert run(output=tmp_path / "third").metrics["cache"]["damaged"] == 0


@pytest.mark.parametrize("store", ["memory", "lz4+memory", "disk"])
def test_an_entry_damaged_after_the_backbone_left_is_computed_again(
    config: Any, run: Any, weights: Any, tmp_path: Path, store: str, monkeypatch: Any
) -> None:
    given = {"cache__store": store, "epochs": 3}
    whole = run(**given, output=tmp_path / "whole", cache__dir=tmp_path / "whole-cache")
    opened: list[ActivationCache] = []
    real = ActivationCache.open.__func__
    monkeypatch.setattr(
        ActivationCache, "open", classmethod(lambda cls, *a, **k: opened.append(real(cls, *a, **k)) or opened[-1])
    )

    def damages(event: Any) -> None:
        if isinstance(event, EpochDone) and event.record["epoch"] == 1:
            inner = getattr(opened[0].store, "_inner", opened[0].store)
            key = sorted(inner.keys())[0]
            value = bytearray(inner.get_many([key])[0])
            value[-20] ^= 0xFF
            inner.delete_many([key])
            inner.put_many([(key, bytes(value))])

    loads: list[str] = []
    plain = load.open_backbone
    monkeypatch.setattr(load, "open_backbone", lambda *given: loads.append(given[0]) or plain(*given))
    tuner = FineTuner(config(**given), observers=[damages])
    result = tuner.run()
    assert result.metrics["cache"]["damaged"] == 1
    assert [e["backbone_samples"] for e in result.metrics["epochs"]] == [24, 1, 0]
    assert len(loads) == 2
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(result)[name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_a_backbone_that_changed_meanwhile_ends_the_run(config: Any, checkpoint: Any, monkeypatch: Any) -> None:
    tuner = FineTuner(config())
    loaded = load.load(tuner.config, Registry())
    other = load.open_backbone(str(checkpoint("gpt2")), torch.float32, Registry())
    with pytest.raises(BadInput, match="weights have changed"):
        loaded.model.replace_backbone(other)
    loaded.model.reader.close()


# No room.


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs root to mount a small file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_and_leaves_the_cache_whole(run: Any, texts: Any, tiny_disk: Path) -> None:
    with pytest.raises(RunFailed) as failed:
        run(texts(200), cache__dir=tiny_disk / "cache")
    assert failed.value.exit_code == 1
    assert "\n" not in str(failed.value)
    from pac_core.caches import damaged_keys, find_caches

    (found,) = find_caches(tiny_disk / "cache")
    with found.open(Registry()) as store:
        keys = list(store.keys())
        assert keys
        assert list(damaged_keys(store)) == []


def test_an_output_folder_without_room_ends_the_run(run: Any, tiny_disk: Path, texts: Any) -> None:
    (tiny_disk / "ballast").write_bytes(bytes(180_000))
    with pytest.raises(RunFailed, match="cannot write") as failed:
        run(texts(8), output=tiny_disk / "out")
    assert failed.value.exit_code == 1


def test_the_command_line_ends_with_status_one_without_room(config: Any, texts: Any, tiny_disk: Path) -> None:
    given = config(texts(200), cache__dir=tiny_disk / "cache")
    file = tiny_disk.parent / "run.yaml"
    file.write_text(json.dumps(given.plain()))
    done = subprocess.run(
        [sys.executable, "-m", "pac_core.cli", "finetune", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
