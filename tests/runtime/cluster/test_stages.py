"""Runs in stages over workers that have no model: each is sent its slice, and the result is that of one device."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput, RunFailed
from pac_core.events import EpochDone
from pac_core.files import write_json

EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0, "epochs": 2}

PLANS = {
    "bert": Plan((StagePlan({ENCODER: (0, 1)}, ("desk",), (4,)), StagePlan({ENCODER: (1, 3)}, ("kitchen",), (4,))), 2),
    "llama": Plan((StagePlan({DECODER: (0, 2)}, ("kitchen",), (4,)), StagePlan({DECODER: (2, 3)}, ("desk",), (4,))), 2),
    "t5": Plan(
        (
            StagePlan({ENCODER: (0, 1)}, ("desk",), (4,)),
            StagePlan({ENCODER: (1, 2), DECODER: (0, 1)}, ("kitchen",), (4,)),
            StagePlan({DECODER: (1, 3)}, ("garage",), (4,)),
        ),
        2,
    ),
}

LAYERS = {
    "bert": {"kitchen": {"encoder-0001", "encoder-0002"}},
    "llama": {"kitchen": {"decoder-0000", "decoder-0001"}},
    "t5": {"kitchen": {"encoder-0001", "decoder-0000"}, "garage": {"decoder-0001", "decoder-0002"}},
}


@pytest.fixture
def given(checkpoint: Any, home: Any, tmp_path: Path, monkeypatch: Any) -> Any:
    """Settings of a run over a plan's devices, whose model is in the home folder of the leader alone."""

    def of(family: str, **changes: Any) -> dict[str, Any]:
        monkeypatch.setenv("HOME", str(tmp_path / "desk"))
        shutil.copytree(checkpoint(family), tmp_path / "desk" / family, dirs_exist_ok=True)
        plan = PLANS[family]
        workers = list(LAYERS[family])
        write_json(tmp_path / "plan.json", plan.to_json())
        return {
            "devices": str(home.file(*workers, **changes)),
            "plan": tmp_path / "plan.json",
            "model": f"~/{family}",
            "family": family,
        }

    return of


def sent(folder: Path) -> set[str]:
    """Files of weights that a device was sent."""
    return {file.stem for file in folder.glob("cache/models/*/*/*.safetensors")}


@pytest.mark.parametrize(
    ("family", "fill"),
    [("bert", "train-while-fill"), ("llama", "prefill"), ("t5", "train-while-fill")],
)
def test_workers_without_a_model_are_sent_their_slice(
    home: Any,
    given: Any,
    run: Any,
    weights: Any,
    texts: Any,
    answers: Any,
    write: Any,
    tmp_path: Path,
    family: str,
    fill: str,
) -> None:
    rows, held = (texts(20), texts(6, seed=1)) if family == "bert" else (answers(20), answers(6, seed=1))
    settings = {**EXACT, "fill": fill, "eval": write("eval.jsonl", held), "generation__eval_samples": 2}
    names = list(LAYERS[family])
    workers = {name: home.worker(name, "--cache-dir", tmp_path / name) for name in names}
    several = run(rows, **settings, **given(family))
    one = run(rows, **settings, family=family, output=tmp_path / "one", cache__dir=tmp_path / "one-cache")
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(several)[name], wanted, rtol=1e-9, atol=1e-9, msg=name)
    assert several.metrics["eval"] == pytest.approx(one.metrics["eval"], rel=1e-9)
    assert several.metrics["epochs"][0]["backbone_samples"] == 20
    for name, worker in workers.items():
        layers = {file for file in sent(worker.folder) if "coder-0" in file}
        assert layers == LAYERS[family][name], name


def test_a_run_goes_on_without_the_workers_that_its_plan_leaves_out(
    home: Any, given: Any, run: Any, texts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Garage, which nobody has started."""
    home.worker("kitchen", "--once")
    devices = [{"name": "garage"}, {"name": "kitchen", "card": "laptop"}, {"name": "desk", "card": "laptop"}]
    links = [{"between": ["garage", "desk"], "mbit": 10}, {"between": ["desk", "kitchen"], "mbit": 100}]
    found = run(texts(20), **EXACT, **given("bert", devices=devices, links=links, shared=True))
    assert [device["name"] for device in found.metrics["devices"]] == ["desk", "kitchen"]
    assert "the plan leaves out garage; the run goes on without" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kitchen", r"plan\.json: the plan is for kitchen; 'desk' is not among them, but leads every run"),
        ("desk", r"plan\.json: the plan is for this device, 'desk', alone; leave --plan and --devices out"),
    ],
)
def test_a_plan_without_the_leader_or_workers_is_refused_before_anyone_is_waited_for(
    home: Any, run: Any, texts: Any, tmp_path: Path, name: str, told: str
) -> None:
    plan = Plan((StagePlan({ENCODER: (0, 3)}, (name,), (4,)),), 2)
    write_json(tmp_path / "plan.json", plan.to_json())
    with pytest.raises(BadInput, match=told):
        run(texts(20), devices=str(home.file("kitchen")), plan=tmp_path / "plan.json")


def test_a_worker_too_small_for_its_slice_is_sent_nothing(home: Any, given: Any, run: Any) -> None:
    small = {"devices": [{"name": "kitchen", "memory": "10KB"}]}
    worker = home.worker("kitchen", "--once")
    with pytest.raises(BadInput, match=r"device kitchen is too small for its slice, encoder \[1, 3\): ") as refused:
        run(**given("bert", **small))
    told = str(refused.value)
    assert told.endswith(
        "the run may take 10,000; give it fewer layers in the plan, or more memory in the cluster file"
    )
    assert "\n" not in told
    assert refused.value.exit_code == 2
    assert worker.process.wait(20) == 1
    assert told[:200] in worker.printed
    assert "Traceback" not in worker.printed
    assert sent(worker.folder) == set()


def test_an_entry_damaged_at_a_worker_is_computed_in_the_stages_again(
    home: Any, given: Any, run: Any, weights: Any, texts: Any, tmp_path: Path
) -> None:
    """The worker has but a slice of the backbone, so the run ends with a line, and goes on by --resume."""
    settings = {**EXACT, **given("bert"), "epochs": 3}
    home.worker("kitchen", "--cache-dir", tmp_path / "kitchen")

    def damage(event: Any) -> None:
        """The last entry that was written: a whole one, since those follow the stage's share."""
        if isinstance(event, EpochDone) and event.record["epoch"] == 1:
            shard = max((tmp_path / "kitchen").rglob("*"), key=lambda file: file.stat().st_size)
            data = bytearray(shard.read_bytes())
            data[len(data.rstrip(b"\0")) - 200] ^= 0xFF
            with open(shard, "r+b") as place:
                place.write(data)

    with pytest.raises(RunFailed, match=r"lost device 'kitchen': an entry of its cache is damaged or gone, and it has"):
        run(texts(20), **settings, observers=[damage])
    resumed = run(texts(20), **settings, resume=True)
    one = run(texts(20), **EXACT | {"epochs": 3}, output=tmp_path / "one", cache__dir=tmp_path / "one-cache")
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(resumed)[name], wanted, rtol=1e-9, atol=1e-9, msg=name)
    assert json.loads((resumed.output / "metrics.json").read_text())["cache"]["entries"] > 0
