"""Which examples a report shows: some predicted right, some wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pac_core.columns import Sample
from pac_core.examples import Example, Task
from pac_core.pieces import answer_text
from pac_core.report.content import Outcome

SHOWN_WRONG, SHOWN_RIGHT = 12, 8

LETTERS = 300
"""Longer texts are shortened."""


def outcomes(
    task: Task, samples: Sequence[Sample], examples: Sequence[Example], predictions: Sequence[Any]
) -> tuple[Outcome, ...]:
    """Examples spread evenly over those predicted wrong and those predicted right, wrong ones first; of numbers, those
    farthest from and nearest to what was expected.

    Args:
        samples, examples: the evaluation data, before and after tokenising; ``samples`` may go on beyond what was
            predicted.
        predictions: class indices, numbers, or texts.
    """
    if task.kind == "regression":
        return _numbers(samples, examples, predictions)
    found = [_outcome(task, *each) for each in zip(samples, examples, predictions)]
    wrong, right = ([outcome for outcome in found if outcome.right is kind] for kind in (False, True))
    return (*_spread(wrong, SHOWN_WRONG), *_spread(right, SHOWN_RIGHT))


def _numbers(samples: Sequence[Sample], examples: Sequence[Example], predictions: Sequence[Any]) -> tuple[Outcome, ...]:
    targets = [float(e.target) for e in examples if isinstance(e.target, int | float)]
    errors = [abs(prediction - target) for prediction, target in zip(predictions, targets)]
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    chosen = order if len(order) <= SHOWN_WRONG + SHOWN_RIGHT else [*order[:SHOWN_WRONG], *order[-SHOWN_RIGHT:]]
    return tuple(
        Outcome(_text(samples[i]), f"{targets[i]:g}", f"{predictions[i]:.3g}", False, errors[i]) for i in chosen
    )


def _outcome(task: Task, sample: Sample, example: Example, prediction: Any) -> Outcome:
    if task.generates:
        expected, predicted = answer_text(sample), str(prediction)
    else:
        assert isinstance(example.target, int)
        expected, predicted = task.labels[example.target], task.labels[prediction]
    return Outcome(_text(sample), _short(expected), _short(predicted), expected.strip() == predicted.strip())


def _text(sample: Sample) -> str:
    """What the model was given."""
    if sample.messages is not None:
        return _short("\n".join(f"{message.role}: {message.content}" for message in sample.messages[:-1]))
    if sample.prompt is not None:
        return _short(sample.prompt)
    return _short(" | ".join(text for text in (sample.text, sample.text_pair) if text is not None))


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}…"


def _spread(found: Sequence[Outcome], count: int) -> list[Outcome]:
    """``count`` of them, evenly spaced."""
    return [found[i * len(found) // count] for i in range(count)] if len(found) > count else list(found)
