"""Whole runs: the cache saves the backbone's work, seeds decide everything, tasks of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pac_core.errors import BadInput, StoreFull
from pac_core.events import CheckpointSaved, EpochDone, RunFinished, RunStarted, StepDone


def phases(result: Any) -> list[tuple[str, int]]:
    return [(epoch["phase"], epoch["backbone_samples"]) for epoch in result.metrics["epochs"]]


def equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_leaves_what_the_design_promises(run: Any, texts: Any, write: Any) -> None:
    result = run(eval=write("eval.jsonl", texts(10, seed=1)))
    left = {path.name for path in result.output.iterdir()}
    promised = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "plan.json",
        "metrics.json",
        "report.html",
        "checkpoint",
    }
    assert promised | {"tokenizer.json"} <= left
    metrics = json.loads((result.output / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics))
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert phases(result) == [("fill", 24), ("cached", 0)]
    assert metrics["epochs"][1]["cache_hits"] == 24
    assert metrics["cache"]["entries"] == 34
    assert metrics["cache"]["damaged"] == 0
    assert set(metrics["eval"]) >= {"loss", "accuracy"}
    assert set(metrics["eval_before"]) >= {"loss", "accuracy"}
    assert metrics["trainable_params"] == result.model.trainable()


def test_a_report_shows_the_run(run: Any, texts: Any, write: Any) -> None:
    result = run(eval=write("eval.jsonl", texts(10, seed=1)))
    report = (result.output / "report.html").read_text(encoding="utf-8")
    metrics = result.metrics
    for text in ("24 samples", "10 samples to evaluate", f"{metrics['eval']['accuracy']:.3f}", "filling the cache",
                 "training from the cache", "evaluating", metrics["devices"][0]["name"], "Predicted right",
                 *(f"{epoch['loss']:.3f}" for epoch in metrics["epochs"]), metrics["versions"]["torch"]):  # fmt: skip
        assert text in report, text
    assert "By phase" not in report
    assert "http" not in report.replace("http-equiv", "")


@pytest.mark.parametrize(("family", "written"), [("gpt2", 3), ("t5", 3), ("gpt2", 0)])
def test_a_report_shows_answers_where_they_were_written(
    run: Any, answers: Any, write: Any, family: str, written: int
) -> None:
    rows = answers(24)
    result = run(rows, family=family, eval=write("eval.jsonl", rows), generation__eval_samples=written,
                 generation__max_new_tokens=4)  # fmt: skip
    report = (result.output / "report.html").read_text(encoding="utf-8")
    shown = [row["prompt"] in report for row in rows]
    assert shown == [True] * written + [False] * (24 - written)
    assert ("writing answers" in report) is (written > 0)


@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
def test_the_backbone_is_released_from_epoch_two_on(run: Any, fill: str) -> None:
    released: list[tuple[int, str]] = []

    def watch(event: Any) -> None:
        if isinstance(event, StepDone) and event.loss is not None:
            released.append((event.epoch, event.phase))

    run(fill=fill, observers=[watch])
    assert {phase for epoch, phase in released if epoch == 2} == {"cached"}
    assert {phase for epoch, phase in released if epoch == 1} == {"cached" if fill == "prefill" else "fill"}


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_both_fill_orders_end_with_the_same_weights(
    run: Any, weights: Any, answers: Any, tmp_path: Path, family: str
) -> None:
    """Up to float rounding: the backbone pads a batch otherwise when it fills ahead, which changes last bits."""
    rows = None if family == "bert" else answers(24)
    one, two = (
        weights(run(rows, family=family, fill=fill, cache__dir=tmp_path / fill, output=tmp_path / f"{fill}-out"))
        for fill in ("prefill", "train-while-fill")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_second_run_on_the_same_data_needs_no_backbone(run: Any, weights: Any, tmp_path: Path) -> None:
    first = run()
    second = run(output=tmp_path / "again")
    assert phases(second) == [("cached", 0), ("cached", 0)]
    assert equal(weights(first), weights(second))


def test_only_new_samples_run_through_the_backbone(run: Any, texts: Any) -> None:
    rows = texts(40)
    run(rows)
    longer = run(rows + texts(100, seed=5))
    assert sum(count for _, count in phases(longer)) == 100


def test_a_seed_reproduces_a_run_and_another_does_not(run: Any, weights: Any, tmp_path: Path) -> None:
    one, same, other = (
        run(seed=seed, output=tmp_path / f"o{i}", cache__dir=tmp_path / f"c{i}") for i, seed in enumerate((1, 1, 2))
    )
    assert equal(weights(one), weights(same))
    assert [e["loss"] for e in one.metrics["epochs"]] == [e["loss"] for e in same.metrics["epochs"]]
    assert not equal(weights(one), weights(other))


def test_micro_batches_change_nothing_but_rounding(run: Any, weights: Any, answers: Any, tmp_path: Path) -> None:
    options = {"family": "gpt2", "adapter__dropout": 0.0, "epochs": 1}
    whole = weights(run(answers(24), **options))
    cut = weights(run(answers(24), **options, micro_batch_size=3, output=tmp_path / "cut"))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_memory_store_that_is_too_small_keeps_the_backbone(
    run: Any, weights: Any, tmp_path: Path, caplog: Any
) -> None:
    whole = run()
    small = run(
        cache__store="memory", cache__budget_bytes=60_000, cache__when_full="evict", output=tmp_path / "small", epochs=2
    )
    assert any("stays in memory" in record.message for record in caplog.records)
    assert small.metrics["epochs"][1]["backbone_samples"] > 0
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(small)[name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_a_budget_that_may_not_evict_ends_the_run(run: Any) -> None:
    with pytest.raises(StoreFull, match="budget_bytes"):
        run(cache__store="memory", cache__budget_bytes=60_000)


def test_the_best_epoch_is_kept(run: Any, texts: Any, write: Any) -> None:
    result = run(texts(16), eval=write("eval.jsonl", texts(40, seed=1)), epochs=6, optimizer__lr=0.05)
    seen = [epoch["eval"] for epoch in result.metrics["epochs"]]

    def mean(metrics: dict[str, float]) -> float:
        scores = [metrics[name] for name in ("accuracy", "f1") if name in metrics]
        return sum(scores) / len(scores)

    assert len({mean(metrics) for metrics in seen}) > 1
    assert mean(result.metrics["eval"]) == max(map(mean, seen))


def test_training_stops_early_without_a_better_evaluation(run: Any, texts: Any, write: Any) -> None:
    result = run(eval=write("eval.jsonl", texts(6, seed=1)), epochs=30, early_stopping=2, optimizer__lr=0.02)
    scores = [epoch["eval"]["accuracy"] for epoch in result.metrics["epochs"]]
    assert len(scores) < 30
    assert max(scores[-2:]) <= max(scores[:-2])


def test_observers_are_told_everything(run: Any, texts: Any, write: Any) -> None:
    events: list[Any] = []
    result = run(eval=write("eval.jsonl", texts(10, seed=1)), observers=[events.append])
    kinds = [type(event) for event in events]
    assert kinds[0] is RunStarted
    assert kinds[-1] is RunFinished
    assert kinds.count(EpochDone) == kinds.count(CheckpointSaved) == 2
    steps = [event for event in events if isinstance(event, StepDone)]
    assert {"fill", "cached", "evaluate"} <= {event.phase for event in steps}
    assert all(0 < event.done <= event.total for event in steps)
    assert events[-1].metrics == result.metrics


def test_an_observer_that_fails_does_not_stop_the_run(run: Any, caplog: Any) -> None:
    called: list[Any] = []
    events: list[Any] = []

    def fails(event: Any) -> None:
        called.append(event)
        raise ValueError("no")

    run(observers=[fails, events.append])
    assert len(called) == 1
    assert isinstance(events[-1], RunFinished)
    assert any("is left out" in record.message for record in caplog.records)


def test_the_model_of_a_result_can_be_used(run: Any) -> None:
    result = run()
    logits = result.model.eval()(torch.tensor([[1, 8, 9], [1, 10, 11]])).logits
    assert logits.shape == (2, 2)
    assert logits.isfinite().all()


# Tasks.


def test_regression(run: Any, texts: Any, write: Any) -> None:
    rows = [{"text": row["text"], "score": len(row["text"]) / 10} for row in texts(24)]
    result = run(rows, eval=write("eval.jsonl", rows), epochs=8, optimizer__lr=0.02, columns={"label": "score"})
    assert {"pearson", "spearman"} <= set(result.metrics["eval"])
    assert result.metrics["eval"]["loss"] < result.metrics["eval_before"]["loss"]


@pytest.mark.parametrize("encoding", ["apart", "joint"])
def test_pairs(run: Any, texts: Any, write: Any, encoding: str) -> None:
    ones, twos = texts(24), texts(24, seed=2)
    rows = [{"sentence1": a["text"], "sentence2": b["text"], "label": a["label"]} for a, b in zip(ones, twos)]
    result = run(rows, eval=write("eval.jsonl", rows), pair_encoding=encoding, epochs=3)
    assert result.metrics["cache"]["entries"] == (48 if encoding == "apart" else 24)
    assert phases(result) == [("fill", 24), ("cached", 0), ("cached", 0)]
    assert result.metrics["epochs"][-1]["loss"] < result.metrics["epochs"][0]["loss"]


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "llama"])
def test_text_to_text(run: Any, answers: Any, write: Any, family: str) -> None:
    rows = answers(24)
    result = run(
        rows,
        family=family,
        eval=write("eval.jsonl", rows[:8]),
        epochs=4,
        optimizer__lr=0.02,
        generation__eval_samples=3,
        generation__max_new_tokens=6,
    )
    assert phases(result) == [("fill", 24), *[("cached", 0)] * 3]
    assert result.metrics["eval"]["perplexity"] < result.metrics["eval_before"]["perplexity"]
    assert any(name.lower().startswith("rouge") for name in result.metrics["eval"])


def test_chat_messages(run: Any, answers: Any) -> None:
    rows = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in answers(16)
    ]
    result = run(rows, family="llama", epochs=3, optimizer__lr=0.02)
    assert result.metrics["epochs"][-1]["loss"] < result.metrics["epochs"][0]["loss"]


# What is refused before anything is written.


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapter__name": "paralel"}, "did you mean 'parallel'"),
        ({"adapter__reduction": 5}, "those that do"),
        ({"cache__store": "dsk"}, "did you mean 'disk'"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"scheduler": "mine"}, "scheduler 'mine' is not known"),
        ({"task": "causal-lm"}, "causal-lm needs"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(run: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told) as refused:
        run(**changes)
    assert "\n" not in str(refused.value)


def test_a_cache_of_another_backbone_is_refused(run: Any, tmp_path: Path, checkpoint: Any) -> None:
    run()
    other = tmp_path / "other"
    other.mkdir()
    for file in checkpoint("bert").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import load_file

    tensors = load_file(other / "model.safetensors")
    save_file({k: v + 0.01 for k, v in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="holds entries of"):
        run(model=str(other), output=tmp_path / "out2")
