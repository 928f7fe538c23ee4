"""Runs on int8 weights: they end alike on one device and several, and what they leave says so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pac_core.contracts.scheduler import Plan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.finetune import FineTuner, RunResult
from pac_core.model import PacModel
from pac_core.planning import make
from pac_core.planning.profile import quantised
from pac_core.runtime import planned
from pac_core.runtime.crew import processes_here
from pac_core.runtime.serve import open_adapter
from pac_core.testing.threads import in_threads
from pac_core.testing.tiny import tiny_model

EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0, "generation__eval_samples": 0}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
PIPELINE = {"devices": 2, "scheduler": "pipeline"}


@pytest.fixture
def lead(config: Any) -> Callable[..., RunResult]:
    """A run whose devices are threads; gives the leader's result. A device waits for the leader's job before it draws
    first weights, so the leader has drawn its own."""

    def of(rows: Any, **changes: Any) -> RunResult:
        given = config(rows, **changes)
        count = int(given.devices)

        def device(transport: Transport) -> RunResult | None:
            tuner = FineTuner(given)
            if transport.rank == 0:
                return tuner.lead(lambda: transport, processes_here(count))
            return tuner.take_part(transport)

        return in_threads(count, device)[0]

    return of


def held(result: RunResult) -> str:
    found: str = json.loads((result.output / "adapter_config.json").read_text())["backbone"]["weights"]
    return found


def assert_same(found: RunResult, expected: RunResult) -> None:
    own, wanted = (load_file(result.output / "adapter_model.safetensors") for result in (found, expected))
    assert own.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(own[name], wanted[name], msg=name, **CLOSE)


@pytest.mark.parametrize(
    ("family", "fill"),
    [("bert", "prefill"), ("bert", "train-while-fill"), ("gpt2", "train-while-fill"), ("t5", "prefill")],
)
def test_stages_end_with_the_weights_of_one_device(
    run: Any, lead: Any, texts: Any, answers: Any, tmp_path: Path, family: str, fill: str
) -> None:
    rows = texts(17) if family == "bert" else answers(17)
    given = {**EXACT, "family": family, "fill": fill, "backbone_weights": "int8"}
    one = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    several = lead(rows, **given, **PIPELINE)
    assert_same(several, one)
    assert several.model.info == one.model.info
    assert [held(result) for result in (one, several)] == ["int8", "int8"]
    assert [result.metrics["plan"]["weights"] for result in (one, several)] == ["int8", "int8"]


def test_devices_with_whole_models_end_with_the_weights_of_one(run: Any, lead: Any, texts: Any, tmp_path: Path) -> None:
    given = {**EXACT, "backbone_weights": "int8"}
    one = run(texts(17), **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    assert_same(lead(texts(17), **given, devices=2), one)


def plans_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers find that nothing fits before weights are int8."""

    def planner(profile: Any, *rest: Any) -> Plan:
        smaller = quantised(profile)
        return make.plan(smaller, *rest)

    monkeypatch.setattr(planned, "plan", planner)


def test_a_scheduler_may_plan_with_int8_weights(
    run: Any, lead: Any, texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(texts(17), **EXACT, backbone_weights="int8", output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    plans_int8(monkeypatch)
    several = lead(texts(17), **EXACT, **PIPELINE)
    assert held(several) == "int8"
    assert_same(several, one)
    again = lead(texts(17), **EXACT, devices=2, plan=several.output / "plan.json", output=tmp_path / "again")
    assert held(again) == "int8"
    assert again.metrics["epochs"][0]["backbone_samples"] == 0  # its cache is that of the plan's weights
    alone = run(texts(17), **EXACT, scheduler="single", output=tmp_path / "alone", cache__dir=tmp_path / "cache-1")
    assert (held(alone), alone.metrics["epochs"][0]["backbone_samples"]) == ("int8", 0)


def test_a_plan_for_other_weights_than_asked_for_is_refused(
    lead: Any, texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans_int8(monkeypatch)
    native = lead(texts(9), **PIPELINE, backbone_weights="native")  # which it has no leave to change
    assert held(native) == "native"
    file = tmp_path / "int8.json"
    given = Plan.from_json({k: v for k, v in native.metrics["plan"].items() if k != make.BESIDE})
    file.write_text(json.dumps(replace(given, weights="int8").to_json()))
    with pytest.raises(BadInput, match=r"int8\.json: a plan for int8 weights, but backbone_weights is native; leave"):
        lead(texts(9), devices=2, plan=file, backbone_weights="native")
    with pytest.raises(BadInput, match=r"plan\.json: a plan for native weights, but backbone_weights is int8; leave"):
        lead(texts(9), devices=2, plan=native.output / "plan.json", backbone_weights="int8")


def test_the_cache_of_native_weights_is_not_taken(run: Any, tmp_path: Path) -> None:
    run(cache__share=True)
    found = run(cache__share=True, backbone_weights="int8", output=tmp_path / "int8")
    assert found.metrics["epochs"][0]["backbone_samples"] == 24
    with pytest.raises(BadInput, match="holds entries of"):
        run(backbone_weights="int8")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_adapter_is_used_on_the_weights_that_it_was_trained_on(
    run: Any, texts: Any, answers: Any, write: Any, checkpoint: Any, family: str
) -> None:
    rows = texts(24) if family == "bert" else answers(12)
    data = write("eval.jsonl", rows)
    result = run(rows, family=family, eval=data, backbone_weights="int8")
    opened = open_adapter(result.output)
    assert opened.model.info == result.model.info
    assert opened.score(data)["loss"] == pytest.approx(result.metrics["eval"]["loss"], rel=1e-4)
    loaded = PacModel.from_pretrained(checkpoint(family), result.output)
    assert loaded.info.weights == "int8"
    with pytest.raises(BadInput, match="trained on a backbone with int8 weights, but the model given has native ones"):
        PacModel.from_pretrained(tiny_model(family), result.output)
    file = result.output / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "backbone": {**content["backbone"], "weights": "int2"}}))
    with pytest.raises(BadInput, match=r"backbone\.weights is 'int2', which this version does not know"):
        open_adapter(result.output)


def test_generated_answers_come_from_int8_weights_too(run: Any, answers: Any, write: Any) -> None:
    data = write("eval.jsonl", answers(4))
    result = run(answers(12), family="llama", eval=data, backbone_weights="int8", generation__max_new_tokens=3)
    assert result.model.backbone.info.weights == "int8"
    assert not result.model.backbone.released


def test_resuming_on_other_weights_is_refused(run: Any) -> None:
    run(backbone_weights="int8")
    with pytest.raises(BadInput, match="cannot resume: backbone_weights was 'int8' and is 'auto'"):
        run(resume=True, cache__share=True)
