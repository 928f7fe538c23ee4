"""Saved adapters in use: scores, predictions, generated answers, conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.errors import BadInput
from pac_core.runtime.serve import OpenAdapter, open_adapter


@pytest.fixture
def trained(run: Any, answers: Any, texts: Any) -> Any:
    def of(family: str, rows: Any = None, **changes: Any) -> Path:
        if rows is None:
            rows = texts(24) if family == "bert" else answers(12)
        result = run(rows, family=family, **{"epochs": 6, "optimizer__lr": 0.02, **changes})
        return Path(result.output)

    return of


def test_a_classifier_scores_and_predicts_what_training_saw(trained: Any, run: Any, texts: Any, write: Any) -> None:
    data = write("eval.jsonl", texts(24))
    folder = trained("bert", eval=data)
    opened = open_adapter(folder)
    final = json.loads((folder / "metrics.json").read_text())["eval"]
    scores = opened.score(data)
    assert scores["accuracy"] == pytest.approx(final["accuracy"])
    assert scores["loss"] == pytest.approx(final["loss"], rel=1e-3)
    answers = opened.predict(opened.read(data))
    assert set(answers) <= {"a", "b"}
    right = sum(answer == row["label"] for answer, row in zip(answers, texts(24), strict=True))
    assert right / 24 == pytest.approx(scores["accuracy"])
    alone = [opened.predict(opened.samples([row["text"]]))[0] for row in texts(24)]
    assert alone == answers


def test_a_regressor_answers_with_numbers(trained: Any, texts: Any) -> None:
    rows = [{"text": row["text"], "label": 50.0 + len(row["text"]) / 3} for row in texts(24)]
    opened = open_adapter(trained("bert", rows))
    found = opened.predict(opened.samples(["good film", "bad bad film was the a good"]))
    assert all(isinstance(number, float) and 30 < number < 90 for number in found)


@pytest.mark.parametrize("encoding", ["apart", "joint"])
def test_pairs_are_told_apart_by_a_tab(trained: Any, texts: Any, encoding: str) -> None:
    rows = [{"sentence1": r["text"], "sentence2": "good film", "label": r["label"]} for r in texts(24)]
    opened = open_adapter(trained("bert", rows, pair_encoding=encoding))
    assert opened.predict(opened.samples(["good film\tbad film"]))[0] in ("a", "b")
    with pytest.raises(BadInput, match=r"argument:1: .* TAB"):
        opened.samples(["good film"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_generated_answers_do_not_depend_on_the_batch(trained: Any, answers: Any, family: str) -> None:
    opened = open_adapter(trained(family, epochs=40, generation__eval_samples=0))
    prompts = [row["prompt"] for row in answers(12)]
    together = opened.predict(opened.samples(prompts), max_new_tokens=6)
    alone = [opened.predict(opened.samples([prompt]), max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
    assert any(together)
    assert not any("</s>" in text or "<pad>" in text for text in together)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_what_was_learnt_by_heart_is_said(trained: Any, family: str) -> None:
    rows = [{"prompt": "good film who", "completion": "you and me"}] * 12
    opened = open_adapter(trained(family, rows, epochs=60, optimizer__lr=0.05))
    assert opened.predict(opened.samples(["good film who"]), max_new_tokens=8) == ["you and me"]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_scores_of_answers_have_text_metrics(trained: Any, answers: Any, write: Any, family: str) -> None:
    opened = open_adapter(trained(family))
    scores = opened.score(write("eval.jsonl", answers(4)), max_new_tokens=4)
    assert scores["perplexity"] > 1
    assert any(name.lower().startswith("rouge") for name in scores)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_conversation_streams_what_predict_gives(trained: Any, family: str) -> None:
    opened = open_adapter(trained(family))
    pieces = list(opened.conversation(max_new_tokens=6).answer("good film who"))
    if family == "t5":
        assert "".join(pieces).strip() == opened.predict(opened.samples(["good film who"]), max_new_tokens=6)[0]
    assert len(pieces) <= 6


def test_a_conversation_remembers_its_turns(trained: Any) -> None:
    turns = [{"role": "user", "content": "good film"}, {"role": "assistant", "content": "yes"}]
    opened = open_adapter(trained("llama", [{"messages": turns}] * 12))
    one, two = opened.conversation(max_new_tokens=3), opened.conversation(max_new_tokens=3)
    list(one.answer("good film"))
    assert [m.role for m in one.messages] == ["user", "assistant"]
    for talk in (one, two):
        list(talk.answer("who was it"))
    assert len(one.messages) == 4
    lengths = [len(talk._prompt("so")) for talk in (one, two)]
    assert lengths[0] > lengths[1]


def test_a_classifier_does_not_chat(trained: Any) -> None:
    with pytest.raises(BadInput, match="gives no text; use pac predict"):
        open_adapter(trained("bert")).conversation()


def test_an_empty_text_is_refused(trained: Any) -> None:
    with pytest.raises(BadInput, match="argument:2: the text is empty"):
        open_adapter(trained("bert")).samples(["good", " "])


def test_an_adapter_whose_model_is_gone_says_so(trained: Any, tmp_path: Path, checkpoint: Any) -> None:
    folder = trained("bert")
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(BadInput, match="gone"):
        open_adapter(folder)
    assert isinstance(open_adapter(folder, str(checkpoint("bert"))), OpenAdapter)
    with pytest.raises(BadInput, match="give the model it was trained on"):
        open_adapter(folder, str(checkpoint("gpt2")))


def test_sampling_differs_and_greedy_answers_repeat(trained: Any) -> None:
    opened = open_adapter(trained("gpt2"))
    asked = opened.samples(["good film who"] * 20)
    torch.manual_seed(0)
    assert len(set(opened.predict(asked, max_new_tokens=6))) == 1
    assert len(set(opened.predict(asked, max_new_tokens=6, temperature=5.0))) > 1
