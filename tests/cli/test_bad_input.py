"""Bad input: one line that names the file and the way out, exit code 2, and what was there before stays as it was."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Refuses = Callable[..., str]


@pytest.fixture
def refuses(pac: Any, trained: Any, data_of: Any, snapshot: Any, tmp_path: Path, checkpoint: Any) -> Refuses:
    """Runs ``pac finetune`` into a finished output folder with these arguments more, which must be refused.

    Returns the one line on stderr, after making sure that the folder is what it was, byte for byte.
    """
    finished = tmp_path / "finished"
    shutil.copytree(trained("reviews"), finished)
    before = snapshot(finished)

    def refuse(*more: object, config: Path | None = None) -> str:
        given: list[object] = [] if config is None else [config]
        if config is None:
            given = ["--model", checkpoint("bert"), "--train", data_of(trained("reviews")), "--reduction", 2]
            given += ["--cache-dir", tmp_path / "cache", "--output", finished]
        line: str = pac("finetune", *given, *more).refusal
        assert snapshot(finished) == before
        return line

    return refuse


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# The configuration.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "epochs"], "--set epochs: write it as key=value"),
        (["--set", "epohcs=3"], "'epohcs' is not a key of the configuration; did you mean 'epochs'?"),
        (["--set", "cache.dtyp=int8"], "'cache.dtyp' is not a key of the configuration; did you mean 'dtype'?"),
        (["--set", "columns=[a"], "--set columns=[a: the value is not valid YAML"),
        (["--epochs", 0], "epochs = 0: input should be greater than 0"),
        (["--lr", "inf"], "optimizer.lr = inf: input should be a finite number"),
        (["--seed", -1], "seed = -1: input should be greater than or equal to 0"),
        (["--train", ""], "train = ''"),
        (["--task", "regresion"], "task = 'regresion': input should be 'auto', 'classification'"),
        (["--cache-dtype", "int4"], "cache.dtype = 'int4'"),
        (["--devices", "home.yaml"], "home.yaml: no such file"),
        (["--set", "devices=0"], "--devices 0: give a number of processes"),
        (["--transport", "zmq"], "--transport zmq: nothing passes between devices; give --devices 2 or more too"),
        (["--scheduler", "pipelin"], "scheduler 'pipelin' is not known; did you mean 'pipeline'?"),
        (["--plan", "/no/plan.json"], "/no/plan.json: no such file; it should hold the plan"),
        (["--adapter", "paralel"], "adapter 'paralel' is not known; did you mean 'parallel'?"),
        (["--store", "dsk"], "store 'dsk' is not known; did you mean 'disk'?"),
        (["--store", "lz4+dsk"], "store 'dsk' is not known"),
        (["--reduction", 5], "5"),
        (["--max-length", 1000], "max length 1000 is more than the 64 tokens the model takes"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--task", "seq2seq"], "seq2seq needs prompt and completion"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else None,
)
def test_settings(refuses: Refuses, arguments: list[object], told: str) -> None:
    assert told in refuses(*arguments)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("model: m\ntrain: [a\nepochs: 1\n", ":3: not valid YAML"),
        ("model: m\n  train: t\n", ":2: not valid YAML"),
        ("- model\n", ": the configuration must be a mapping"),
        ("model: m\ntrain: t\ncache:\n  dtyp: int8\n", ":4: 'cache.dtyp' is not a key of the configuration"),
        ("model: m\ntrain: t\n\nepochs: many\n", ":4: epochs = 'many': input should be a valid integer"),
        ("model: m\n", ": 'train' is not set; give it in the configuration or as --train"),
        (b"model: \xff\n", ": cannot be read"),
        ("model: &a {b: *a}\n", ": an anchor (&) holds an alias (*) of itself"),
    ],
)
def test_a_configuration_file(refuses: Refuses, tmp_path: Path, content: str | bytes, told: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{file}{told}" in refuses(config=file)


def test_a_configuration_that_is_not_there(refuses: Refuses, tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.yaml'}: no such file" in refuses(config=tmp_path / "no.yaml")


# Data.


@pytest.mark.parametrize("option", ["--train", "--eval"])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.tsv", b"", " is empty"),
        ("header.csv", b"text,label\n", " has a header but no rows"),
        ("columns.csv", b"body,mood\nthe film,a\nthe one,b\nthe red,c\n", ": no known columns; found: body, mood"),
        ("label.jsonl", b'{"text": "the film", "mood": "a"}\n', ": no label column"),
        ("latin.csv", "text,label\nthe film,kind\nthe caf\xe9,kind\n".encode("latin1"), ":3: byte 8 of the line"),
        ("utf16.tsv", "text\tlabel\n".encode("utf-16"), "iconv -f utf-16"),
        ("cells.tsv", b"text\tlabel\nthe film\tkind\nthe\tfilm\tkind\n", ":3 has 3 cells, but the first line has 2"),
        ("cut.jsonl", b'{"text": "the film", "label": "kind"}\n{"text": "the', ":2: not valid JSON"),
        ("cut.json", b'[\n{"text": "the film", "label": "kind"},\n{"text": "the', ":3: not valid JSON"),
        ("quote.csv", b'text,label\n"the film,kind\n', ":2: not valid CSV"),
        ("hole.jsonl", b'{"text": "the", "label": "kind"}\n{"text": "", "label": "kind"}\n', ":2: 'text' is empty"),
        ("data.xls", b"\xd0\xcf", ": files ending in '.xls' are not read"),
    ],
)
def test_a_data_file(refuses: Refuses, tmp_path: Path, option: str, name: str, content: bytes, told: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    line = refuses(option, file)
    assert str(file) in line
    assert told in line


def test_a_data_file_that_is_not_there(refuses: Refuses, tmp_path: Path) -> None:
    (tmp_path / "reviews.tsv").write_text("")
    line = refuses("--train", tmp_path / "review.tsv")
    assert line == (f"error: {tmp_path / 'review.tsv'} does not exist; did you mean {tmp_path / 'reviews.tsv'}?")


def test_a_column_that_is_not_there(refuses: Refuses) -> None:
    assert "no column 'mood' for label; found: text, label" in refuses("--set", "columns.label=mood")


def test_a_label_that_training_did_not_have(refuses: Refuses, write: Any, pac: Any, trained: Any) -> None:
    file = write("eval.jsonl", [{"text": "the film", "label": "kind"}, {"text": "the film", "label": "odd"}])
    for line in (refuses("--eval", file), pac("evaluate", "--adapter", trained("reviews"), "--data", file).refusal):
        assert f"{file}:2: the label 'odd' does not occur in the training data" in line
        assert "kind" in line


def test_a_text_that_is_too_long(refuses: Refuses, write: Any) -> None:
    rows = [{"text": "the film", "label": "kind"}, {"text": "the film " * 40, "label": "unkind"}]
    line = refuses("--train", write("long.jsonl", rows))
    assert "long.jsonl:2: 81 tokens are more than the 64 the model takes" in line
    assert "--max-length 64" in line


def test_one_label_only(refuses: Refuses, write: Any) -> None:
    assert "two classes at least" in refuses("--train", write("one.jsonl", [{"text": "the film", "label": "kind"}] * 3))


@pytest.mark.parametrize("with_eval", [False, True], ids=["train", "eval"])
def test_training_that_diverges_fails_and_keeps_what_was_saved(
    pac: Any, trained: Any, data_of: Any, checkpoint: Any, snapshot: Any, tmp_path: Path, with_eval: bool
) -> None:
    out = Path(shutil.copytree(trained("reviews"), tmp_path / "out"))
    data = data_of(trained("reviews"))
    given = ["--model", checkpoint("bert"), "--train", data, "--output", out, "--cache-dir", tmp_path / "cache"]
    more = ["--eval", data] if with_eval else []
    before = snapshot(out)
    ended = pac("finetune", *given, *more, "--reduction", 2, "--lr", 1e30, "--batch-size", 8, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith("error: training diverged: the loss of epoch 1 is ")
    after = snapshot(out)
    assert {name: after[name] for name in before if "checkpoint" not in name} == {
        name: content for name, content in before.items() if "checkpoint" not in name
    }


# Places.


@pytest.mark.parametrize("option", ["--output", "--cache-dir"])
def test_a_folder_below_a_file(refuses: Refuses, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("mine")
    line = refuses(option, tmp_path / "file" / "folder")
    assert str(tmp_path / "file" / "folder") in line
    assert "choose another" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs root to mount a read-only file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a read-only file system cannot be mounted: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("option", ["--output", "--cache-dir"])
def test_a_read_only_place(refuses: Refuses, read_only: Path, option: str) -> None:
    line = refuses(option, read_only / "folder")
    assert "Read-only file system" in line
    assert "choose another" in line


def test_bad_input_leaves_no_output_folder(refuses: Refuses, tmp_path: Path) -> None:
    refuses("--output", tmp_path / "a" / "b", "--reduction", 5)
    assert not (tmp_path / "a").exists()


def test_a_cache_of_another_backbone(refuses: Refuses, pac: Any, trained: Any, checkpoint: Any, tmp_path: Path) -> None:
    folder = trained("gpt2").parent / "cache"
    line = refuses("--cache-dir", folder)
    assert f"cache folder {folder} holds entries of" in line
    assert "give another --cache-dir" in line


# Models, adapters and checkpoints that are damaged or of another kind.


@pytest.fixture
def model(checkpoint: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "model"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_half_a_file_of_a_model(refuses: Refuses, model: Path, name: str) -> None:
    half(model / name)
    assert str(model) in refuses("--model", model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_of_a_model(refuses: Refuses, model: Path, name: str) -> None:
    (model / name).unlink()
    line = refuses("--model", model)
    assert str(model) in line
    assert name in line


@pytest.mark.parametrize("name", ["state.safetensors", "best.safetensors"])
def test_a_damaged_checkpoint(
    pac: Any, trained: Any, data_of: Any, checkpoint: Any, snapshot: Any, write: Any, tmp_path: Path, name: str
) -> None:
    data = data_of(trained("reviews"))
    given = ["--model", checkpoint("bert"), "--train", data, "--eval", data, "--output", tmp_path / "out"]
    command = ["finetune", *given, "--epochs", 1, "--reduction", 2, "--cache-dir", tmp_path / "cache", "--json"]
    assert pac(*command).code == 0
    half(tmp_path / "out" / "checkpoint" / name)
    before = snapshot(tmp_path / "out")
    line = pac(*command, "--resume").refusal
    assert f"{tmp_path / 'out' / 'checkpoint' / name}: " in line
    assert "run without --resume to start anew" in line
    assert snapshot(tmp_path / "out") == before


@pytest.fixture
def adapter(trained: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained("reviews"), tmp_path / "adapter"))


def served(pac: Any, adapter: Path, data: Path) -> list[str]:
    """What predict, evaluate and chat say."""
    return [
        pac("predict", "--adapter", adapter, "the film").refusal,
        pac("evaluate", "--adapter", adapter, "--data", data).refusal,
        pac("chat", "--adapter", adapter, stdin="the film\n").refusal,
    ]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_half_a_file_of_an_adapter(pac: Any, adapter: Path, data_of: Any, trained: Any, name: str) -> None:
    half(adapter / name)
    for line in served(pac, adapter, data_of(trained("reviews"))):
        assert str(adapter / name) in line


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_file_of_an_adapter(pac: Any, adapter: Path, data_of: Any, trained: Any, name: str) -> None:
    (adapter / name).unlink()
    for line in served(pac, adapter, data_of(trained("reviews"))):
        assert f"{adapter / name}: no such file" in line


def test_a_folder_that_is_not_there(pac: Any, tmp_path: Path, data_of: Any, trained: Any) -> None:
    for line in served(pac, tmp_path / "none", data_of(trained("reviews"))):
        assert f"{tmp_path / 'none'}: no such folder; an adapter is a folder" in line


def test_an_adapter_of_peft(pac: Any, adapter: Path, data_of: Any, trained: Any) -> None:
    content = {"peft_type": "LORA", "base_model_name_or_path": "m", "task_type": "SEQ_CLS", "r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    for line in served(pac, adapter, data_of(trained("reviews"))):
        assert f"{adapter / 'adapter_config.json'}: not a PAC adapter" in line
        assert "an adapter of PEFT, not of PAC" in line


def test_another_model_than_in_training(pac: Any, adapter: Path, checkpoint: Any) -> None:
    line = pac("predict", "--adapter", adapter, "--model", checkpoint("gpt2"), "the film").refusal
    assert "give the model it was trained on" in line


# What is asked of an adapter.


def test_a_classifier_does_not_chat(pac: Any, trained: Any) -> None:
    line = pac("chat", "--adapter", trained("reviews"), stdin="hello\n").refusal
    assert "this adapter does classification, which gives no text; use pac predict" in line


def test_a_pair_needs_a_tab(pac: Any, trained: Any) -> None:
    line = pac("predict", "--adapter", trained("scores"), "one\ttwo", "the film").refusal
    assert "argument:2: this adapter takes pairs; separate the two texts with a TAB" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give either texts or --data FILE"),
        (["the film", "--data", "x.csv"], "give either texts or --data FILE"),
        (["the film", " "], "argument:2: the text is empty"),
        (["caf\udce9"], "argument:1: the text is not UTF-8"),
        (["--data", "none.csv"], "none.csv does not exist"),
    ],
)
def test_what_cannot_be_predicted(pac: Any, trained: Any, arguments: list[str], told: str) -> None:
    assert told in pac("predict", "--adapter", trained("reviews"), *arguments).refusal


def test_a_message_longer_than_the_model(pac: Any, trained: Any) -> None:
    line = pac("chat", "--adapter", trained("llama-chat"), stdin="the film " * 40).refusal
    assert "more than the 64 the model takes" in line


def test_kinds_of_plugins(pac: Any) -> None:
    assert "plugin kind 'store' is not known; kinds: backbones, adapters" in pac("plugins", "store").refusal
