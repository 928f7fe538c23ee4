"""Reading files: every format, every way a file can be broken, and what is written is what is read."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pac_core.data import Message, read_samples
from pac_core.errors import BadInput

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
one_cell = anything.filter(lambda text: not set(text) & set("\t\n\r"))
names = st.text("abcdefg ", min_size=1).map(str.strip).filter(bool)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: str | Path, *parts: str, **how: object) -> str:
    """The one-line error, which must hold all ``parts``."""
    with pytest.raises(BadInput) as caught:
        read_samples(path, **how)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


# --- what is written is what is read


@quick
@given(st.lists(st.tuples(anything, names), min_size=1))
def test_jsonl_round_trip(tmp_path, rows):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    assert [(s.text, s.label, s.source) for s in read_samples(path)] == [
        (t, n, f"{path}:{i}") for i, (t, n) in enumerate(rows, 1)
    ]


@quick
@given(st.lists(st.tuples(anything, anything), min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip_with_line_numbers(tmp_path, rows, ending):
    path = tmp_path / "a.csv"
    starts = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL)
        writer.writerow(["prompt", "completion"])
        for row in rows:
            file.flush()
            starts.append(len(path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")))
            writer.writerow(row)
    samples = read_samples(path)
    assert [(s.prompt, s.completion) for s in samples] == rows
    assert [s.source for s in samples] == [f"{path}:{line}" for line in starts]


@quick
@given(st.lists(st.tuples(one_cell, one_cell), min_size=1), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_tsv_round_trip_with_literal_quotes(tmp_path, rows, mark, ending):
    lines = ["prompt\tcompletion", *("\t".join(row) for row in rows)]
    path = write(tmp_path / "a.tsv", ("\ufeff" if mark else "") + ending.join(lines) + ending)
    assert [(s.prompt, s.completion) for s in read_samples(path)] == rows


@quick
@given(st.lists(st.tuples(anything, names), min_size=1), st.sampled_from([None, 0, 4]))
def test_json_knows_the_line_of_each_sample(tmp_path, rows, indent):
    content = json.dumps({"other": [], "train": [list(row) for row in rows]}, indent=indent)
    path = write(tmp_path / "a.json", content)
    samples = read_samples(f"{path}:train")
    assert [(s.text, s.label) for s in samples] == rows
    lines = content.split("\n")
    for sample in samples:
        assert "[" in lines[int(sample.source.rsplit(":", 1)[1]) - 1]
    if indent is not None:
        assert len({s.source for s in samples}) == len(rows)


def test_json_list_of_objects_and_only_split(tmp_path):
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    for content in (json.dumps(rows), json.dumps({"data": rows})):
        samples = read_samples(write(tmp_path / "a.json", content))
        assert [(s.text, s.label) for s in samples] == [("good", 1), ("bad", 0)]


def test_csv_cells_beyond_the_default_field_limit(tmp_path):
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    assert read_samples(write(tmp_path / "a.csv", f"text,label\n{long},1\nb,0\n"))[0].text == long
    assert csv.field_size_limit() == limit


def test_line_separators_inside_a_text_end_no_line(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\u2028b\x0cc\x85d\tyes\ne\tno\n")
    assert [s.text for s in read_samples(path)] == ["a\u2028b\x0cc\x85d", "e"]


def test_chat(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write(tmp_path / "a.jsonl", json.dumps({"messages": turns}) + "\n")
    assert read_samples(path)[0].messages == (Message("user", "hi"), Message("assistant", "hello"))


# --- broken files


def test_missing_file_names_near_ones(tmp_path):
    write(tmp_path / "train.tsv", "a\t1\n")
    refused(tmp_path / "trian.tsv", "does not exist", f"did you mean {tmp_path / 'train.tsv'}?")
    refused(tmp_path / "none" / "a.csv", "nor does its folder")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json"])
@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_empty_file(tmp_path, name, content):
    refused(write(tmp_path / name, content), f"{name} is empty")


def test_header_alone(tmp_path):
    refused(write(tmp_path / "a.csv", "text,label\n"), "has a header but no rows")
    refused(write(tmp_path / "a.json", "[]"), "is empty")


def test_other_ending(tmp_path):
    refused(write(tmp_path / "a.xlsx", b"PK"), "'.xlsx'", ".jsonl, .csv, .tsv, .json")


def test_not_utf8_names_the_byte_and_the_way_out(tmp_path):
    path = write(tmp_path / "a.tsv", b"text\tlabel\nok\t1\ncaf\xe9\t0\n")
    refused(path, f"{path}:3: byte 4 of the line (0xe9, offset 19 in the file)", "iconv -f latin1 -t utf-8 a.tsv")
    path = write(tmp_path / "b.csv", "text,label\na,1\n".encode("utf-16"))
    refused(path, "b.csv:1: byte 1", "iconv -f utf-16")


def test_bad_json(tmp_path):
    good = '{"text": "a", "label": 1}\n'
    refused(write(tmp_path / "a.jsonl", good + "\n" + '{"text": \n'), "a.jsonl:3: not valid JSON")
    refused(write(tmp_path / "a.jsonl", good + "7\n"), "a.jsonl:2: a sample must be a JSON object")
    refused(write(tmp_path / "a.json", "[\n{]"), "a.json:2: not valid JSON")
    refused(write(tmp_path / "a.json", '"text"'), "must hold a list of samples or an object of splits")
    refused(write(tmp_path / "a.json", '[["a", "b"],\n["c"]]'), "a.json:2: a sample must be")


def test_splits_have_to_be_named(tmp_path):
    path = write(tmp_path / "a.json", '{"val": [["a", "x"]], "train": [["b", "y"]]}')
    refused(path, "has the splits train, val; choose one", f"{path}:train")
    refused(f"{path}:test", "no split 'test'; it has: train, val")
    refused(f"{write(tmp_path / 'b.json', '[]')}:train", "one list without splits")
    refused(f"{write(tmp_path / 'c.csv', 'text')}:train", "has no splits")


def test_rows_of_another_width(tmp_path):
    refused(write(tmp_path / "a.tsv", "text\tlabel\na\t1\nb\n"), "a.tsv:3 has 1 cells", "has 2 (text, label)")
    refused(write(tmp_path / "a.csv", 'text,label\n"a\nb",1\nb,c,0\n'), "a.csv:4 has 3 cells")


def test_unbalanced_quotes(tmp_path):
    refused(write(tmp_path / "a.csv", 'text,label\na,1\n"b,0\nc,1\n'), "a.csv:3: not valid CSV", "written twice")
    refused(write(tmp_path / "a.csv", 'text,label\n"a" b,1\n'), "a.csv:2: not valid CSV")


def test_a_column_that_occurs_twice(tmp_path):
    refused(write(tmp_path / "a.csv", "text,label,text\na,1,b\n"), "the column 'text' occurs twice")


# --- Hugging Face data sets


def test_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "two")
    assert [(s.text, s.label) for s in read_samples(tmp_path / "one")] == [("a", "yes"), ("b", "no")]
    assert read_samples(f"{tmp_path / 'two'}:test")[1].source == f"{tmp_path / 'two'}:test:2"
    refused(tmp_path / "two", "has the splits test, train")
    refused(f"{tmp_path / 'one'}:train", "one data set without splits")


def test_hidden_labels_of_a_data_set_are_none(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features).save_to_disk(tmp_path / "hidden")
    assert read_samples(tmp_path / "hidden", require_label=False)[0].label is None
    refused(tmp_path / "hidden", "hidden:1: no label in 'label'")


def test_data_sets_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("someone/something", 'pip install "pac-core[hub]"')


def test_unknown_data_set_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    refused("nobody/no-such-data-set", "neither a file here nor a data set")
