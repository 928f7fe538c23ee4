"""The real data sets, as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pac_core.data import infer_task, read_samples
from pac_core.errors import BadInput

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets (../shared/data) are not here")


@pytest.mark.parametrize(
    ("name", "rows", "kind", "classes", "pair"),
    [
        ("sst2_train.tsv", 6920, "classification", 2, False),
        ("sst2_dev.tsv", 872, "classification", 2, False),
        ("sst2_test.tsv", 1821, "classification", 2, False),
        ("mrpc_train.tsv", 4076, "classification", 2, True),
        ("mrpc_test.tsv", 1725, "classification", 2, True),
        ("clinc150.json:train", 15000, "classification", 150, False),
        ("clinc150.json:val", 3000, "classification", 150, False),
        ("sst2_glue_dev.jsonl", 872, "classification", 2, False),
        ("qnli_dev.jsonl", 5463, "classification", 2, True),
        ("stsb_train.jsonl", 5749, "regression", 0, True),
        ("stsb_dev.jsonl", 1500, "regression", 0, True),
    ],
)
def test_labelled(name, rows, kind, classes, pair):
    samples = read_samples(DATA / name)
    task = infer_task(samples)
    assert (len(samples), task.kind, len(task.labels), task.pair) == (rows, kind, classes, pair)


@pytest.mark.parametrize(
    ("name", "rows"), [("gsm8k_train.jsonl", 7473), ("gsm8k_test.jsonl", 1319), ("e2e_dev.csv", 4672)]
)
def test_generation(name, rows):
    samples = read_samples(DATA / name)
    assert len(samples) == rows
    assert all(sample.prompt and sample.completion for sample in samples)


def test_lines_are_those_of_the_file():
    lines = (DATA / "clinc150.json").read_text(encoding="utf-8").split("\n")
    for sample in read_samples(DATA / "clinc150.json:test")[::500]:
        line = int(sample.source.rsplit(":", 1)[1])
        assert sample.text in lines[line]  # the bracket is on the line before
    mrpc = (DATA / "mrpc_test.tsv").read_text(encoding="utf-8-sig").split("\n")
    for sample in read_samples(DATA / "mrpc_test.tsv")[::300]:
        assert mrpc[int(sample.source.rsplit(":", 1)[1]) - 1].split("\t")[3] == sample.text


def test_clinc_needs_a_split():
    with pytest.raises(BadInput, match="oos_test, oos_train, oos_val, test, train, val; choose one"):
        read_samples(DATA / "clinc150.json")
