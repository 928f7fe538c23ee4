from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.errors import RunFailed
from pac_core.examples import Task
from pac_core.metrics import compute_metrics, perplexity

TWO, THREE, NUMBER, TEXT = (
    Task("classification", ("0", "1")),
    Task("classification", ("a", "b", "c")),
    Task("regression"),
    Task("seq2seq"),
)


def test_two_classes_score_the_second_as_glue_does():
    # 2 true positives, 1 false positive, 1 false negative, 1 true negative
    found = compute_metrics(TWO, [1, 1, 1, 0, 0], np.array([1, 1, 0, 1, 0]))
    assert found == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3})


def test_more_classes_score_the_mean():
    found = compute_metrics(THREE, [0, 1, 1, 2], [0, 1, 2, 2])
    assert found == pytest.approx({"accuracy": 3 / 4, "f1": (1 + 2 / 3 + 2 / 3) / 3})


def test_regression():
    found = compute_metrics(NUMBER, [1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx({"pearson": 8 / math.sqrt(2 * 98 / 3), "spearman": 1.0, "mse": 40 / 3})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1))
def test_regression_is_always_finite(pairs):
    predictions, references = zip(*pairs)
    found = compute_metrics(NUMBER, predictions, references)
    assert all(math.isfinite(value) for value in found.values())
    assert all(-1.000001 <= found[name] <= 1.000001 for name in ("pearson", "spearman"))


def test_constant_predictions_have_no_correlation():
    found = compute_metrics(NUMBER, [2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


def test_diverged_training_is_said():
    with pytest.raises(RunFailed, match="lower the learning rate"):
        compute_metrics(NUMBER, [math.nan, 1.0], [1.0, 2.0])
    with pytest.raises(RunFailed, match="diverged"):
        perplexity(math.inf)


def test_generation():
    pytest.importorskip("rouge_score", reason="the generation extra is not installed")
    pytest.importorskip("sacrebleu", reason="the generation extra is not installed")
    same = compute_metrics(TEXT, ["the cat sat on the mat "], ["the cat sat on the mat"])
    assert same == pytest.approx({"exact_match": 1.0, "rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "bleu": 100.0})
    part = compute_metrics(TEXT, ["the cat", ""], ["the dog", "x"])
    assert part["rouge1"] == pytest.approx(0.25)  # half the words of the one, none of the other
    assert part["exact_match"] == 0.0
    assert 0.0 <= part["bleu"] < 50.0


def test_missing_libraries_leave_their_metrics_out(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert compute_metrics(TEXT, ["a"], ["a"]) == {"exact_match": 1.0}
    assert caplog.text.count('pip install "pac-core[generation]"') == 2


def test_perplexity():
    assert perplexity(math.log(7)) == pytest.approx(7.0)
    assert perplexity(1e9) < math.inf


def test_wrong_lengths():
    for predictions, references in (([1], [1, 0]), ([], [])):
        with pytest.raises(ValueError, match="predictions for"):
            compute_metrics(TWO, predictions, references)
