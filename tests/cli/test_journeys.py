"""From data to answers with the commands alone: finetune, evaluate, predict, chat."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml


def tune(model: Path, train: Path, tmp_path: Path, *more: object) -> list[object]:
    """Arguments of a quick run into ``tmp_path / "out"``."""
    quick = ["--epochs", 2, "--batch-size", 8, "--reduction", 4, "--cache-dir", tmp_path / "cache"]
    return ["finetune", "--model", model, "--train", train, "--output", tmp_path / "out", *quick, *more]


@pytest.mark.parametrize(
    ("name", "metric", "least"), [("reviews", "accuracy", 0.99), ("scores", "pearson", 0.8)], ids=["labels", "numbers"]
)
def test_what_was_learnt_is_found_again(
    pac: Any, trained: Any, data_of: Any, name: str, metric: str, least: float
) -> None:
    adapter = trained(name)
    reported = json.loads((adapter / "metrics.json").read_text())
    ended = pac("evaluate", "--adapter", adapter, "--data", data_of(adapter), "--json")
    assert ended.code == 0
    assert ended.json["eval"][metric] >= least
    assert ended.json["eval"][metric] == pytest.approx(reported["eval"][metric], abs=1e-3)


def test_a_classifier_names_the_labels(pac: Any, trained: Any) -> None:
    adapter = trained("reviews")
    ended = pac("predict", "--adapter", adapter, "the film was great", "the red was awful")
    assert (ended.code, ended.out, ended.err) == (0, "kind\nunkind\n", "")
    assert pac("predict", "--adapter", adapter, "--json", "the film was bad").json == {"predictions": ["unkind"]}


def test_a_file_without_labels_is_predicted(pac: Any, trained: Any, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text('text,id\n"the film was good",1\nthe one was sad,2\n')
    assert pac("predict", "--adapter", trained("reviews"), "--data", file).out == "kind\nunkind\n"


def test_a_pair_of_texts_gets_a_number(pac: Any, trained: Any, write: Any) -> None:
    adapter = trained("scores")
    pairs = ["the love film\tthe great film", "the love film\tthe blue film"]
    alike, other = (float(line) for line in pac("predict", "--adapter", adapter, *pairs).out.split())
    assert alike > 3 > 2 > other
    rows = [dict(zip(("sentence1", "sentence2"), pair.split("\t"))) for pair in pairs]
    found = pac("predict", "--adapter", adapter, "--data", write("new.jsonl", rows), "--json").json["predictions"]
    assert found == pytest.approx([alike, other], abs=1e-4)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_language_model_answers(pac: Any, trained: Any, data_of: Any, name: str) -> None:
    adapter = trained(name)
    scores = pac("evaluate", "--adapter", adapter, "--data", data_of(adapter), "--max-new-tokens", 8, "--json").json
    assert scores["eval"]["perplexity"] < 2
    asked = ["what is the film", "what is the blue"]
    ended = pac("predict", "--adapter", adapter, "--max-new-tokens", 8, *asked)
    assert ended.out == "it was good\nit was hate\n"
    talked = pac("chat", "--adapter", adapter, "--max-new-tokens", 8, stdin="\n".join(asked))
    assert [line.strip() for line in talked.out.splitlines()] == ended.out.splitlines()
    assert talked.err == ""


def test_a_chat_is_learnt_and_continued(pac: Any, trained: Any) -> None:
    chat = ("chat", "--adapter", trained("llama-chat"), "--max-new-tokens", 8)
    assert pac(*chat, stdin="what is the red\n").out.strip() == "it was love"
    predicted = pac("predict", "--adapter", trained("llama-chat"), "--max-new-tokens", 8, "what is the red")
    assert predicted.out.strip() == "it was love"
    messages = pac(*chat, "--json", stdin="what is the red\nwhat is the blue\n\nnot read\n").json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].strip() == "it was love"


def test_a_chat_outlives_the_length_of_the_model(pac: Any, trained: Any) -> None:
    questions = ["what is the red", "what is the film", "what is the blue"] * 5
    ended = pac("chat", "--adapter", trained("llama-chat"), "--max-new-tokens", 8, stdin="\n".join(questions))
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 15
    assert all(line.strip() for line in ended.out.splitlines())


def test_finetune_says_what_it_did(pac: Any, checkpoint: Any, write: Any, reviews: Any, tmp_path: Path) -> None:
    data = write("train.jsonl", reviews)
    ended = pac(*tune(checkpoint("bert"), data, tmp_path, "--eval", data, "--max-length", 4))
    assert ended.code == 0
    first, cut, *epochs, saved = ended.err.splitlines()
    assert first.startswith("trainable parameters: ")
    assert cut == "72 samples were cut to 4 tokens"
    assert [line.split(":")[0] for line in epochs] == ["epoch 1 (fill)", "epoch 2 (cached)"]
    assert all("accuracy" in line and len(line) <= 80 for line in epochs)
    assert f"saved to {tmp_path / 'out'}" in saved
    assert "before" in ended.out
    assert "accuracy" in ended.out


def test_finetune_prints_its_metrics_as_json(
    pac: Any, checkpoint: Any, write: Any, reviews: Any, tmp_path: Path
) -> None:
    ended = pac(*tune(checkpoint("bert"), write("train.jsonl", reviews), tmp_path, "--json"))
    assert ended.json == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [epoch["phase"] for epoch in ended.json["epochs"]] == ["fill", "cached"]


def test_resuming_starts_anew_where_nothing_is_and_then_goes_on(
    pac: Any, checkpoint: Any, write: Any, reviews: Any, tmp_path: Path
) -> None:
    arguments = tune(checkpoint("bert"), write("train.jsonl", reviews), tmp_path, "--resume", "--json")
    first = pac(*arguments)
    assert first.code == 0
    again = pac(*arguments)
    assert again.json["epochs"] == first.json["epochs"]


def test_a_configuration_file_with_flags_and_settings_over_it(
    pac: Any, checkpoint: Any, write: Any, tmp_path: Path
) -> None:
    rows = [{"body": f"the {word} film", "class": word in ("good", "love")} for word in ("good", "bad", "love", "sad")]
    config = {
        "model": str(checkpoint("bert")),
        "train": str(write("train.jsonl", rows)),
        "output": str(tmp_path / "out"),
        "columns": {"text": "body", "label": "nothing"},
        "cache": {"store": "memory", "dtype": "int8"},
        "adapter": {"reduction": 8},
        "epochs": 5,
        "devices": 1,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    more = ("--set", "columns.label=class", "--set", "adapter.name=bottleneck", "--epochs", 1)
    ended = pac("finetune", file, *more, "--reduction", 4, "--json")
    assert ended.code == 0
    assert len(ended.json["epochs"]) == 1
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (saved["adapter"]["name"], saved["adapter"]["reduction"]) == ("bottleneck", 4)
    assert saved["columns"] == {"text": "body", "label": "class"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "mark.jsonl",
            b'\xef\xbb\xbf{"text": "the good film", "label": "a"}\r\n{"text": "the film", "label": "b"}\r\n',
        ),
        ("mark.csv", b'\xef\xbb\xbftext,label\r\n"the ""good"", film",a\r\n"the\nfilm",b\r\n'),
        ("quotes.tsv", b'sentence\tlabel\r\nthe "good film\ta\r\n"the" film\tb\r\n'),
        ("mark.tsv", b"\xef\xbb\xbftext\tlabel\nthe film\ta\n\nthe good film\tb\n"),
    ],
)
def test_files_as_other_programs_write_them(
    pac: Any, checkpoint: Any, tmp_path: Path, name: str, content: bytes
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    ended = pac(*tune(checkpoint("bert"), file, tmp_path, "--epochs", 1, "--json"))
    assert ended.code == 0, ended.err
    assert ended.json["epochs"][0]["samples"] == 2
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task"]["labels"] == ["a", "b"]


def test_plugins_are_listed(pac: Any) -> None:
    found = pac("plugins", "stores", "--json").json
    assert {"disk", "lz4", "memory"} <= {plugin["name"] for plugin in found["plugins"]}
    assert {plugin["kind"] for plugin in found["plugins"]} == {"stores"}
    assert "parallel" in pac("plugins", "adapters").out


def test_a_plugin_can_be_left_out(pac: Any, trained: Any, checkpoint: Any, write: Any, tmp_path: Path) -> None:
    without = ("--no-plugin", "pac-adapters")
    names = {plugin["kind"] for plugin in pac("plugins", "--no-plugin", "pac-adapters", "--json").json["plugins"]}
    assert "stores" in names
    assert "adapters" not in names
    data = write("train.jsonl", [{"text": "the film", "label": "a"}])
    for command in (
        tune(checkpoint("bert"), data, tmp_path, *without),
        ["predict", "--adapter", trained("reviews"), *without, "the film"],
        ["evaluate", "--adapter", trained("reviews"), *without, "--data", data],
        ["chat", "--adapter", trained("gpt2"), *without],
    ):
        assert "adapter 'parallel' is not known" in pac(*command).refusal


def test_long_texts_are_cut_on_request(pac: Any, trained: Any) -> None:
    text = "the film was great " * 30
    refusal = pac("predict", "--adapter", trained("reviews"), text).refusal
    assert "argument:1:" in refusal
    assert "--max-length 64" in refusal
    assert pac("predict", "--adapter", trained("reviews"), text, "--max-length", 64).code == 0


def test_predictions_of_a_file_can_be_read_back(pac: Any, trained: Any, tmp_path: Path) -> None:
    file = tmp_path / "new.tsv"
    with file.open("w", newline="") as out:
        csv.writer(out, delimiter="\t").writerows([["text"], ["the film was great"], ["the film was awful"]])
    assert pac("predict", "--adapter", trained("reviews"), "--data", file, "--json").json["predictions"] == [
        "kind",
        "unkind",
    ]
