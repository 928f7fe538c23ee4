"""How good predictions are, by well-kept libraries: scikit-learn, SciPy, rouge-score, sacrebleu."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pac_core.errors import RunFailed
from pac_core.examples import Task

_LOG = logging.getLogger(__name__)

Values = Sequence[Any] | NDArray[Any]

WATCHED = ("accuracy", "f1", "pearson", "spearman")
"""Metrics that epochs are compared by."""


def compute_metrics(task: Task, predictions: Values, references: Values) -> dict[str, float]:
    """Metrics of a task, all of them finite.

    Args:
        task: the task.
        predictions: class indices (int), numbers (float), or the generated texts.
        references: the same, as they should be.

    Returns:
        classification: accuracy, f1 (of the second class where there are two, as in GLUE, else the mean over the
        classes that occur). Regression: pearson, spearman (0 where one side is constant), mse. Generation:
        exact_match, rouge1, rouge2, rougeL from 0 to 1 and bleu from 0 to 100; those whose library is missing are left
        out, and a line in the log says so.

    Raises:
        ValueError: no predictions, or not as many as references.
        RunFailed: predicted numbers are not finite.
    """
    if len(predictions) != len(references) or not len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if task.kind == "classification":
        return _classification(len(task.labels), np.asarray(predictions), np.asarray(references))
    if task.kind == "regression":
        return _regression(np.asarray(predictions, np.float64), np.asarray(references, np.float64))
    return _generation([str(text) for text in predictions], [str(text) for text in references])


def watched(metrics: dict[str, float]) -> float | None:
    """What epochs are compared by, larger is better: the mean of the task's metrics, else minus the loss."""
    if not metrics:
        return None
    scores = [value for name, value in metrics.items() if name in WATCHED]
    return sum(scores) / len(scores) if scores else -metrics["loss"]


def perplexity(loss: float) -> float:
    """Perplexity of a mean loss in nats a token; the largest float where it would overflow.

    Raises:
        RunFailed: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise RunFailed(f"the loss is {loss}: training diverged; lower the learning rate")
    return math.exp(min(loss, 709.0))


def _classification(classes: int, predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    binary = classes == 2
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1": float(f1_score(references, predictions, average="binary" if binary else "macro", zero_division=0.0)),
    }


def _regression(predictions: NDArray[np.float64], references: NDArray[np.float64]) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    if not np.isfinite(predictions).all():
        raise RunFailed("predicted numbers are not finite: training diverged; lower the learning rate")
    many = len(references) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input; the answer, nan, becomes 0 below
        pearson, spearman = (rank(predictions, references)[0] for rank in (pearsonr, spearmanr)) if many else (0.0, 0.0)
    return {
        "pearson": _finite(pearson),
        "spearman": _finite(spearman),
        "mse": float(np.mean((predictions - references) ** 2)),
    }


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _generation(predictions: list[str], references: list[str]) -> dict[str, float]:
    exact = sum(given.strip() == wanted.strip() for given, wanted in zip(predictions, references))
    return {"exact_match": exact / len(references), **_rouge(predictions, references), **_bleu(predictions, references)}


def _rouge(predictions: list[str], references: list[str]) -> dict[str, float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        _LOG.warning('ROUGE is left out; to have it: pip install "pac-core[generation]"')
        return {}
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), use_stemmer=True)
    scores = [scorer.score(wanted, given) for wanted, given in zip(references, predictions)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}


def _bleu(predictions: list[str], references: list[str]) -> dict[str, float]:
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        _LOG.warning('BLEU is left out; to have it: pip install "pac-core[generation]"')
        return {}
    return {"bleu": float(corpus_bleu(predictions, [references]).score)}
