"""Which columns are found, what a valid cell is, and which task the samples pose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pac_core.contracts.backbone import BackboneInfo, Stream
from pac_core.data import Sample, infer_task, label_index, read_samples
from pac_core.errors import BadInput
from pac_core.examples import Task

ENCODER = Stream("encoder", 2, causal=False)
DECODER = Stream("decoder", 2, causal=True)


def info(*streams: Stream, kind: str = "some") -> BackboneInfo:
    return BackboneInfo(kind, 8, 16, streams, "layer", 1e-5, "gelu", False, 100, 64, torch.float32, "f")


BERT, GPT, T5 = info(ENCODER, kind="bert"), info(DECODER, kind="gpt2"), info(ENCODER, DECODER, kind="t5")


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(folder: Path, text: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *parts: str, **how: object) -> None:
    with pytest.raises(BadInput) as caught:
        read_samples(path, **how)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "a", "label": "x"}, {"text": "a", "label": "x"}),
        ({"Sentence": "a", "Intent": "x"}, {"text": "a", "label": "x"}),
        ({"text": "a", "category": 3}, {"text": "a", "label": 3}),
        ({"sentence1": "a", "sentence2": "b", "label": 0.5}, {"text": "a", "text_pair": "b", "label": 0.5}),
        ({"question": "a", "sentence": "b", "label": "x"}, {"text": "a", "text_pair": "b", "label": "x"}),
        ({"Quality": 1, "#1 String": "a", "#2 String": "b"}, {"text": "a", "text_pair": "b", "label": 1}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"question": "a", "answer": "b"}, {"prompt": "a", "completion": "b"}),
        ({"mr": "a", "ref": "b"}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "a", "input": "c", "output": "b"}, {"prompt": "a\n\nc", "completion": "b"}),
        ({"instruction": "a", "input": "", "output": "b"}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b"}),
        ({"text": "a"}, {"text": "a"}),
        ({"text": "a", "label": True}, {"text": "a", "label": "true"}),
    ],
)
def test_columns_are_found_by_name(tmp_path, row, found):
    path = jsonl(tmp_path, row)
    assert read_samples(path) == [Sample(f"{path}:1", **found)]


def test_mapped_columns(tmp_path):
    path = table(tmp_path, "review,stars,label\nfine,4.5,x\npoor,1,y\n")
    assert [(s.text, s.label) for s in read_samples(path, columns={"text": "review"})] == [("fine", "x"), ("poor", "y")]
    samples = read_samples(path, columns={"text": "review", "label": "stars"})
    assert [s.label for s in samples] == [4.5, 1.0]
    samples = read_samples(path, columns={"prompt": "review", "completion": "label"})
    assert [(s.prompt, s.completion) for s in samples] == [("fine", "x"), ("poor", "y")]
    refused(path, "no known columns; found: review, stars", "columns: {text: review, label: stars}")
    refused(path, "no column 'reviews' for text; found: review", columns={"text": "reviews"})
    refused(path, "'texts' is not a role", columns={"texts": "review"})


def test_files_without_header(tmp_path):
    path = table(tmp_path, "fine film\t1\nawful\t0\nso so\t1\n", "a.tsv")
    assert [(s.text, s.label, s.source[-1]) for s in read_samples(path)] == [
        ("fine film", 1, "1"),
        ("awful", 0, "2"),
        ("so so", 1, "3"),
    ]
    path = table(tmp_path, "play it,music\nlights,home\nsing,music\n")
    assert [s.label for s in read_samples(path)] == ["music", "home", "music"]
    path = table(tmp_path, "7,x,good\n8,y,bad\n")
    samples = read_samples(path, columns={"text": "1", "label": "2"})
    assert [(s.text, s.label) for s in samples] == [("x", "good"), ("y", "bad")]


def test_an_unknown_header_is_not_taken_for_a_sample(tmp_path):
    refused(table(tmp_path, "review\tsentiment\nfine\tpos\nbad\tneg\nok\tpos\n", "a.tsv"), "found: review, sentiment")


def test_text_with_other_columns_is_not_silently_a_language_model(tmp_path):
    path = table(tmp_path, "text,sentiment\nfine,pos\n")
    refused(path, "no label column", "found: text, sentiment", "{label: NAME}", "columns: {text: text}")
    assert read_samples(path, columns={"text": "text"})[0].label is None
    assert read_samples(path, require_label=False)[0].label is None


def test_labels_and_completions_may_be_missing_for_predictions(tmp_path):
    assert read_samples(jsonl(tmp_path, {"prompt": "a"}), require_label=False)[0].completion is None
    assert read_samples(jsonl(tmp_path, {"text": "a", "label": None}), require_label=False)[0].label is None
    refused(jsonl(tmp_path, {"prompt": "a"}), "no known columns")
    refused(jsonl(tmp_path, {"sentence1": "a", "sentence2": "b"}), "no label column")


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "0"], [1, 0]),
        (["1.5", "2"], [1.5, 2.0]),
        (["-1", "+1"], [-1, 1]),
        (["1e3", ".5"], [1000.0, 0.5]),
        (["01", "02"], ["01", "02"]),
        (["1", "two"], ["1", "two"]),
        (["nan", "bread"], ["nan", "bread"]),
        ([" yes", "no "], ["yes", "no"]),
    ],
)
def test_types_of_labels_in_a_csv(tmp_path, cells, labels):
    samples = read_samples(table(tmp_path, "text,label\n" + "".join(f"t,{cell}\n" for cell in cells)))
    assert [s.label for s in samples] == labels
    assert [type(s.label) for s in samples] == [type(label) for label in labels]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"text": "a", "label": 1}, {"text": "b"}], (":2: no label in 'label'",)),
        ([{"text": "a", "label": 1}, {"text": "b", "label": "x"}], (":2: the label 'x'", ":1, 1", "different types")),
        ([{"text": "a", "label": 1.5}, {"text": "b", "label": float("nan")}], (":2: the label nan is not a finite",)),
        ([{"text": "a", "label": [1]}], (":1: the label in 'label' must be text or a number, not [1]",)),
        ([{"text": " ", "label": 1}], (":1: 'text' is empty",)),
        ([{"text": 5, "label": 1}], (":1: 'text' must be text, not 5",)),
        ([{"text": "\ud800", "label": 1}], (":1: 'text' holds half of a surrogate pair",)),
        ([{"text": "a", "label": 1}, {"label": 1}], (":2: no 'text'",)),
        ([{"prompt": "a", "completion": ""}], (":1: 'completion' is empty",)),
        ([{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a"}], (":2: no 'messages'", "cannot be mixed")),
        ([{"prompt": "a", "messages": []}], (":1: 'messages' must be a list",)),
        ([{"messages": [{"role": "user"}]}], (":1: each message needs role and content",)),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, rows, parts):
    refused(jsonl(tmp_path, *rows), *parts)


def test_a_broken_number_in_a_csv(tmp_path):
    refused(table(tmp_path, "text,label\na,1.5\nb,2.5\nc,n/a\n"), ":4: the label 'n/a' is not a finite number")
    refused(table(tmp_path, "text,label\na,1\nb,2\nc,nan\n"), ":4: the label 'nan' is not a finite number")
    refused(table(tmp_path, "text,label\na,1.5\nb,\n"), ":3: no label in 'label'")


# --- tasks


def sample(**fields: object) -> Sample:
    return Sample("f:1", **fields)  # type: ignore[arg-type]


def test_auto_tasks():
    texts = [sample(text="a", label=label) for label in (10, 9, 1)]
    assert infer_task(texts) == Task("classification", ("1", "9", "10"))
    pairs = [sample(text="a", text_pair="b", label=label) for label in "yx"]
    assert infer_task(pairs, apart=True) == Task("classification", ("x", "y"), pair=True, apart=True)
    assert infer_task([sample(text="a", label=0.5)]) == Task("regression")
    question = [sample(prompt="a", completion="b")]
    assert (infer_task(question, info=T5).kind, infer_task(question, info=GPT).kind) == ("seq2seq", "causal-lm")
    assert infer_task([sample(text="a")], info=GPT) == Task("causal-lm")
    assert infer_task([sample(text="a", label=1), sample(text="b", label=2)], kind="regression") == Task("regression")


@pytest.mark.parametrize(
    ("samples", "how", "part"),
    [
        ([], {}, "no samples"),
        ([sample(text="a", label=1)], {"kind": "ner"}, "task 'ner' is not known; choose auto, classification"),
        ([sample(text="a", label=1)], {}, "every sample has the label '1'"),
        ([sample(text="a", label=1)], {"apart": True}, "read apart"),
        ([sample(text="a")], {"info": BERT}, "classification needs a text and a label"),
        ([sample(text="a")], {"info": T5}, "seq2seq needs prompt and completion"),
        ([sample(prompt="a", completion="b")], {}, "choose seq2seq or causal-lm"),
        ([sample(prompt="a", completion="b")], {"info": BERT}, "classification needs a text and a label"),
        ([sample(prompt="a", completion="b")], {"info": BERT, "kind": "causal-lm"}, "a model that writes text"),
        ([sample(prompt="a", completion="b")], {"info": GPT, "kind": "seq2seq"}, "encoder-decoder model"),
        ([sample(prompt="a", completion="b")], {"info": T5, "kind": "causal-lm"}, "choose seq2seq"),
        ([sample(text="a", label="x")], {"info": GPT, "kind": "causal-lm"}, "columns: {prompt: TEXT COLUMN"),
        ([sample(text="a", label="x")], {"kind": "regression"}, "the label 'x' is not a number"),
        ([sample(text="a", label=f"text {i}") for i in range(90)], {}, "90 different labels in 90 rows"),
        ([sample(text="a", label="x"), sample(text="a")], {}, "f:1: no label"),
    ],
)
def test_tasks_that_do_not_fit(samples, how, part):
    with pytest.raises(BadInput, match=r".*") as caught:
        infer_task(samples, **how)
    assert part in str(caught.value)


def test_labels_that_training_did_not_have():
    task = Task("classification", tuple(f"light_{i}" for i in range(30)))
    assert label_index(task, sample(text="a", label="light_3")) == 3
    assert label_index(Task("classification", ("0", "1")), sample(text="a", label=1.0)) == 1
    with pytest.raises(BadInput) as caught:
        label_index(task, sample(text="a", label="lihgt_7"))
    message = str(caught.value)
    assert message.startswith(
        "f:1: the label 'lihgt_7' does not occur in the training data; its 30 labels are light_7,"
    )
    assert message.count("light_") == 8
    with pytest.raises(BadInput, match="f:1: no label"):
        label_index(task, sample(text="a"))
