"""Runs whose plan has stages: they end with one device's weights, in both ways to fill, and go on after a stop."""

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core import finetune
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput, PeerLost, RunFailed
from pac_core.events import StepDone
from pac_core.finetune import FineTuner, RunResult
from pac_core.planning.make import device_names
from pac_core.runtime import first_epoch, hybrid, job, load, spread, train
from pac_core.runtime.crew import processes_here
from pac_core.runtime.passes import own_rows, widened
from pac_core.runtime.spreading import Spreading
from pac_core.testing.threads import Exchange, in_threads

EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0, "generation__eval_samples": 0}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def stages(*layers: dict[str, tuple[int, int]], groups: Sequence[Sequence[int]]) -> Plan:
    """A plan for devices of this machine; ``groups`` are the rows of each device of each stage."""
    names = iter(device_names(sum(map(len, groups))))
    made = tuple(StagePlan(held, tuple(next(names) for _ in rows), tuple(rows)) for held, rows in zip(layers, groups))
    return Plan(made, -(-8 // sum(groups[0])), "1f1b", "by hand")


def turned(plan: Plan) -> Plan:
    """The same over the devices in the reverse order: the leader, which is the first of them, runs the last stage."""
    names = iter(device_names(plan.size)[::-1])
    stages = tuple(replace(stage, devices=tuple(next(names) for _ in stage.rows)) for stage in plan.stages)
    return replace(plan, stages=stages)


PLANS = {
    "bert": stages({ENCODER: (0, 1)}, {ENCODER: (1, 3)}, groups=[(1, 2), (3,)]),
    "gpt2": stages({DECODER: (0, 2)}, {DECODER: (2, 3)}, groups=[(3,), (2, 1)]),
    "t5": stages({ENCODER: (0, 1)}, {ENCODER: (1, 2), DECODER: (0, 1)}, {DECODER: (1, 3)}, groups=[(2,), (1, 1), (2,)]),
}


@pytest.fixture
def in_stages(config: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., RunResult]:
    """A run whose devices are threads, over `PLANS` or as a scheduler plans; gives the leader's result."""
    attach, lock = load.attach, threading.Lock()

    def one_at_a_time(*args: Any) -> Any:
        with lock:  # threads draw first weights from one generator
            return attach(*args)

    monkeypatch.setattr(load, "attach", one_at_a_time)
    monkeypatch.setattr(job, "attach", one_at_a_time)

    def run(rows: Any, by: Plan | None = None, exchange: Exchange | None = None, **changes: Any) -> RunResult:
        if by is not None:
            changes |= {"plan": tmp_path / "given.json", "devices": by.size}
            changes["plan"].write_text(json.dumps(by.to_json()))
        given = config(rows, **changes)

        def device(transport: Transport) -> RunResult | None:
            tuner = FineTuner(given)
            return (
                tuner.lead(lambda: transport, processes_here(int(given.devices)))
                if transport.rank == 0
                else tuner.take_part(transport)
            )

        return in_threads(int(given.devices), device, exchange)[0]

    return run


def assert_same(found: RunResult, expected: RunResult, weights: Any) -> None:
    assert weights(found).keys() == weights(expected).keys()
    for name, wanted in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], wanted, msg=name, **CLOSE)
    assert found.metrics["eval"] == pytest.approx(expected.metrics["eval"], rel=1e-9)
    assert found.metrics["eval_before"] == pytest.approx(expected.metrics["eval_before"], rel=1e-9)
    for mine, wanted in zip(found.metrics["epochs"], expected.metrics["epochs"], strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-9)
        assert (mine["phase"], mine["backbone_samples"]) == (wanted["phase"], wanted["backbone_samples"])
        assert mine["bytes_sent"] > 0


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_stages_end_with_the_weights_of_one_device(
    run: Any, in_stages: Any, weights: Any, texts: Any, answers: Any, write: Any, tmp_path: Path,
    family: str, fill: str, store: str,
) -> None:  # fmt: skip
    rows, held = (texts(25), texts(9, seed=1)) if family == "bert" else (answers(25), answers(9, seed=1))
    given = {**EXACT, "family": family, "epochs": 2, "eval": write("eval.jsonl", held), "fill": fill,
             "optimizer__max_grad_norm": 0.1}  # fmt: skip
    one = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    exchange = Exchange()
    several = in_stages(rows, PLANS[family], exchange, **given, cache__store=store)
    assert_same(several, one, weights)
    assert [line for line in exchange.waiting() if "status" not in line] == []  # statuses may be on their way
    assert Plan.from_json({k: v for k, v in several.metrics["plan"].items() if k != "backbone_dtype"}) == PLANS[family]
    assert [device["name"] for device in several.metrics["devices"]] == device_names(PLANS[family].size)
    drawn = ": forward 0, " in (several.output / "report.html").read_text()  # boxes, however narrow
    assert drawn == (fill == "train-while-fill")


@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_the_leader_may_run_the_last_stage(
    run: Any, in_stages: Any, weights: Any, texts: Any, answers: Any, write: Any, tmp_path: Path,
    family: str, fill: str,
) -> None:  # fmt: skip
    """And groups may list their devices in any order."""
    rows, held = (texts(25), texts(9, seed=1)) if family == "bert" else (answers(25), answers(9, seed=1))
    given = {**EXACT, "family": family, "eval": write("eval.jsonl", held), "fill": fill}
    one = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    plan = turned(PLANS[family])
    several = in_stages(rows, plan, **given, cache__store="memory")
    assert_same(several, one, weights)
    names = device_names(plan.size)
    assert plan.stages[-1].devices[-1] == names[0]
    assert [device["name"] for device in several.metrics["devices"]] == names
    assert Plan.from_json({k: v for k, v in several.metrics["plan"].items() if k != "backbone_dtype"}) == plan


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
def test_texts_may_be_in_training_and_evaluation_data(
    run: Any, in_stages: Any, weights: Any, texts: Any, write: Any, tmp_path: Path, fill: str, store: str
) -> None:
    """At different owners; both need what a stage has of them, one after the other."""
    rows = texts(25)
    given = {**EXACT, "epochs": 2, "eval": write("eval.jsonl", rows[::-2]), "fill": fill}
    one = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    several = in_stages(rows, PLANS["bert"], **given, cache__store=store)
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(several)[name], wanted, msg=name, **CLOSE)


@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
def test_pairs_read_apart_are_filled_ahead(
    run: Any, in_stages: Any, weights: Any, texts: Any, tmp_path: Path, fill: str
) -> None:
    """Whatever was asked for, since texts are matched in all taps before the first side layer."""
    first, second = texts(25), texts(25, seed=2)
    rows = [{"sentence1": a["text"], "sentence2": b["text"], "label": a["label"]} for a, b in zip(first, second)]
    given = {**EXACT, "epochs": 2}
    one = run(rows, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    several = in_stages(rows, PLANS["bert"], **given, fill=fill, cache__store="memory")
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(several)[name], wanted, msg=name, **CLOSE)


@pytest.mark.parametrize(("scheduler", "count"), [("pipeline", 3), ("data-parallel", 2)])
def test_a_scheduler_plans_and_its_plan_can_be_used_again(
    run: Any, in_stages: Any, weights: Any, texts: Any, tmp_path: Path, scheduler: str, count: int
) -> None:
    given = {**EXACT, "devices": count, "epochs": 1, "cache__store": "memory"}
    one = run(texts(25), **EXACT, epochs=1, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    planned = in_stages(texts(25), **given, scheduler=scheduler)
    again = in_stages(texts(25), **given, plan=planned.output / "plan.json", output=tmp_path / "again")
    assert planned.metrics["plan"]["scheduler"] == scheduler
    assert again.metrics["plan"] == planned.metrics["plan"]
    assert_same(planned, one, weights)
    assert_same(again, one, weights)


def test_a_later_run_finds_its_entries_and_moves_nothing(in_stages: Any, texts: Any, tmp_path: Path) -> None:
    in_stages(texts(25), PLANS["bert"], **EXACT)
    exchange = Exchange()
    again = in_stages(texts(25), PLANS["bert"], exchange, **EXACT, output=tmp_path / "again")
    assert again.metrics["epochs"][0]["backbone_samples"] == 0
    assert {m.tag.direction for _, _, m in exchange.sent}.isdisjoint({"entries", "forward"})


def test_every_device_holds_its_slice_of_the_backbone_alone(in_stages: Any, answers: Any, monkeypatch: Any) -> None:
    """And, of the layers that it does not run, none but the one that is being pruned."""
    opened: list[tuple[Any, int]] = []
    real = load.open_backbone

    def note(*args: Any, **options: Any) -> Any:
        backbone = real(*args, **options)
        if args[3]:  # to look at the model, nothing is held
            sizes = [p.numel() for layers in backbone._layers.values() for m in layers for p in m.parameters()]
            opened.append((args[3], sum(sizes)))
        return backbone

    monkeypatch.setattr(load, "open_backbone", note)
    in_stages(answers(12), PLANS["t5"], family="t5", epochs=1)
    end = {DECODER: (3, 3)}
    slices = [stage.layers for stage in PLANS["t5"].stages for _ in stage.devices]
    assert sorted(str(dict(layers)) for layers, _ in opened) == sorted(str(dict(x)) for x in [*slices, *[end] * 4])
    assert {size for layers, size in opened if layers == end} == {0}


def once(act: Callable[[], None], when: Callable[[StepDone], bool]) -> Callable[[Any], None]:
    """An observer that calls ``act`` at the first progress that ``when`` picks."""
    done: list[bool] = []

    def observer(event: Any) -> None:
        if isinstance(event, StepDone) and when(event) and not done:
            done.append(True)
            act()

    return observer


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill_a_member() -> None:
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if b"pac_core.member" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
            return


def begun(event: StepDone) -> bool:
    """Epoch 1 has begun to train."""
    return event.phase == "fill" and event.loss is not None


@pytest.mark.parametrize("act", [interrupt, kill_a_member])
def test_processes_that_train_while_they_fill_go_on_after_a_stop(
    run: Any, weights: Any, texts: Any, tmp_path: Path, place: Path, monkeypatch: Any, act: Callable[[], None]
) -> None:
    """After Ctrl-C from the step it came in; after a kill, epoch 1 begins anew."""
    monkeypatch.setattr(first_epoch, "REPORT_SECONDS", 0.0)
    given = {**EXACT, "epochs": 2, "batch_size": 2, "fill": "train-while-fill"}
    one = run(texts(60), **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    given |= {"devices": 2, "scheduler": "pipeline"}
    stops = once(act, begun)
    with pytest.raises(KeyboardInterrupt if act is interrupt else RunFailed):
        run(texts(60), **given, observers=[stops])
    assert (tmp_path / "output" / "checkpoint" / "state.safetensors").exists() == (act is interrupt)
    assert list(place.glob("pac-*")) == []
    first: list[StepDone] = []
    resumed = run(texts(60), **given, resume=True, observers=[once(lambda: None, lambda e: bool(first.append(e)))])
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(resumed)[name], wanted, msg=name, **CLOSE)
    assert (next(e.done for e in first if begun(e)) > 2) == (act is interrupt)


def test_a_prefill_that_was_stopped_keeps_what_it_has(
    run: Any, in_stages: Any, weights: Any, texts: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """What is left goes through the backbone in the batches of a run that was not stopped, which decide last bits."""
    monkeypatch.setattr(hybrid, "PASS_TOKENS", 1)
    monkeypatch.setattr(hybrid, "PASSES", 1)
    given = {**EXACT, "epochs": 1}
    one = run(texts(25), **given, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    real, calls, batches = hybrid.Pipeline.fill, [], set()

    def noted(pipeline: Any, rows: int, batch: Any, *given: Any) -> Any:
        batches.add(tuple(segment.content for example in batch for segment in example.segments))
        return real(pipeline, rows, batch, *given)

    monkeypatch.setattr(hybrid.Pipeline, "fill", noted)
    in_stages(texts(25), PLANS["bert"], **given, output=tmp_path / "whole", cache__dir=tmp_path / "cache-2")
    whole = set(batches)
    batches.clear()

    def third_fails(pipeline: Any, rows: int, *given: Any) -> Any:
        calls.append(rows)
        if len(calls) > 2 * 3:
            raise RuntimeError("the power went")
        return real(pipeline, rows, *given)

    monkeypatch.setattr(hybrid.Pipeline, "fill", third_fails)
    with pytest.raises(RuntimeError, match="the power went"):
        in_stages(texts(25), PLANS["bert"], **given)
    for lost in sorted((tmp_path / "cache").glob("*.shard"))[:1]:
        os.truncate(lost, lost.stat().st_size - 1)  # as a kill may leave it
    monkeypatch.setattr(hybrid.Pipeline, "fill", noted)
    resumed = in_stages(texts(25), PLANS["bert"], **given, resume=True)
    assert batches < whole
    assert 0 < resumed.metrics["epochs"][0]["backbone_samples"] < 25
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(resumed)[name], wanted, msg=name, **CLOSE)


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
def test_a_run_that_is_stopped_while_entries_travel_goes_on(
    run: Any, in_stages: Any, weights: Any, texts: Any, tmp_path: Path, monkeypatch: Any, fill: str, store: str
) -> None:
    """Without any device loading the whole backbone, whatever of the entries is gone with a memory store."""
    given = {**EXACT, "epochs": 3, "fill": fill, "cache__store": store}
    one = run(texts(25), **EXACT, epochs=3, output=tmp_path / "one", cache__dir=tmp_path / "cache-1")
    flags: list[Any] = []
    travelling: list[bool] = []
    tuners: set[FineTuner] = set()

    class Noted(finetune.StopFlag):
        def __init__(self) -> None:
            super().__init__()
            flags.append(self)

    def last_comes_late(plan: Any, holding: Any, examples: Any, chunk: Any, pieces: Any) -> list[int]:
        if threading.current_thread().name == "pac-spreading" and chunk[-1] == len(examples) - 1:
            stopped.wait(20)
        return put(plan, holding, examples, chunk, pieces)

    def stop_in_the_first_cached_epoch(tuner: FineTuner, event: Any) -> None:
        tuners.add(tuner)
        if isinstance(event, StepDone) and event.phase == "cached" and not travelling:
            travelling.append(any(t.stages is not None and t.stages.spreads for t in tuners))
            for flag in flags:
                flag.requested = True
            stopped.set()

    put, stopped = spread._put, threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(finetune, "StopFlag", Noted)
        patched.setattr(spread, "CHUNK_TOKENS", 8)
        patched.setattr(spread, "_put", last_comes_late)
        patched.setattr(train, "REPORT_SECONDS", 0.0)
        patched.setattr(FineTuner, "_tell", stop_in_the_first_cached_epoch)
        with pytest.raises(KeyboardInterrupt):
            in_stages(texts(25), PLANS["bert"], **given)
    # scales were set from all these few samples, so the leader had brought their entries to a disk that all share
    assert travelling == [(fill, store) != ("prefill", "disk")]

    plain = load.open_backbone

    def no_layers(model: Any, dtype: Any, registry: Any, layers: Any = None, *known: Any) -> Any:
        assert layers is not None, "a device loads the whole backbone"
        return plain(model, dtype, registry, layers, *known)

    monkeypatch.setattr(load, "open_backbone", no_layers)
    resumed = in_stages(texts(25), PLANS["bert"], **given, resume=True)
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(resumed)[name], wanted, msg=name, **CLOSE)


@pytest.mark.parametrize(("rows", "factor"), [(0, 1), (3, 1), (7, 2), (300, 100)])
def test_micro_batches_grow_in_the_same_proportions(rows: int, factor: int) -> None:
    plan = PLANS["bert"]
    grown = widened(plan, rows)
    assert [stage.rows for stage in grown.stages] == [(factor, 2 * factor), (3 * factor,)]
    for total in (1, 5, 601):
        for number in range(len(plan.stages)):
            assert sum(own_rows(grown, rank, total) for rank in plan.group(number)) == total


def test_training_waits_for_entries_and_hears_what_went_wrong() -> None:
    go = threading.Event()

    def work(arrived: Any) -> list[int]:
        arrived([3, 1])
        go.wait(10)
        raise PeerLost(2, "gone")

    spreading = Spreading(work, there=[7])
    spreading.wait([1, 7])
    go.set()
    with pytest.raises(PeerLost, match="lost device 2"):
        spreading.wait([4])
    with pytest.raises(PeerLost, match="lost device 2"):
        spreading.finish()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scheduler": "pipelin"}, "scheduler 'pipelin' is not known; did you mean 'pipeline'"),
        ({"scheduler": "single"}, "the plan uses 1 of 2 devices"),
        ({"scheduler": "pipeline", "devices": 4}, "3 layers cannot be cut into 4 stages"),
        ({"scheduler": "data-parallel", "micro_batch_size": 1}, "1 rows cannot be shared by 2 devices"),
        ({"plan": "nowhere.json"}, "nowhere.json: no such file; it should hold the plan"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_refused(in_stages: Any, texts: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        in_stages(texts(25), **{"devices": 2, **changes})


def test_a_plan_for_other_devices_is_refused_by_name(in_stages: Any, texts: Any, tmp_path: Path) -> None:
    plan = Plan((StagePlan({ENCODER: (0, 1)}, ("pi",), (2,)), StagePlan({ENCODER: (1, 3)}, ("nas",), (2,))), 4)
    with pytest.raises(BadInput, match=r"given\.json: a plan for other devices: it names pi, nas, and this run has"):
        in_stages(texts(25), plan)


def test_a_plan_for_another_model_is_refused_with_its_file(in_stages: Any, texts: Any) -> None:
    plan = stages({ENCODER: (0, 3)}, {ENCODER: (3, 6)}, groups=[(2,), (2,)])
    with pytest.raises(BadInput, match=r"given\.json: a plan for another model: the stages run encoder \[0, 3\); "):
        in_stages(texts(25), plan)
