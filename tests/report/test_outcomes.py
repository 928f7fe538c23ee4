"""Which examples are shown."""

from typing import Any

import numpy as np

from pac_core.columns import Message, Sample
from pac_core.examples import Example, Task
from pac_core.report.outcomes import LETTERS, SHOWN_RIGHT, SHOWN_WRONG, outcomes


def examples(targets: list[Any]) -> list[Example]:
    return [Example((), target) for target in targets]


def test_wrong_ones_come_first_and_both_are_spread_over_the_data() -> None:
    samples = [Sample(f"f:{i}", text=f"text {i}", label="ab"[i % 2]) for i in range(100)]
    found = outcomes(Task("classification", ("a", "b")), samples, examples([i % 2 for i in range(100)]), [0] * 100)
    assert [outcome.right for outcome in found] == [False] * SHOWN_WRONG + [True] * SHOWN_RIGHT
    assert {(o.expected, o.predicted) for o in found if not o.right} == {("b", "a")}
    numbers = [int(outcome.text.split()[1]) for outcome in found if not outcome.right]
    assert numbers == sorted(numbers)
    assert numbers[-1] > 80


def test_numbers_are_shown_from_the_farthest_to_the_nearest() -> None:
    samples = [Sample(f"f:{i}", text=f"one {i}", text_pair="two", label=1.0) for i in range(30)]
    task = Task("regression", pair=True)
    found = outcomes(task, samples, examples([1.0] * 30), [1.0 + i / 10 for i in range(30)])
    assert [o.text for o in found] == [f"one {i} | two" for i in (*range(29, 17, -1), *range(7, -1, -1))]
    assert found[-1].error == 0.0
    assert (found[0].expected, found[0].predicted) == ("1", "3.9")


def test_answers_are_compared_as_texts_for_as_many_as_were_written() -> None:
    samples = [
        Sample("f:1", prompt="why?", completion=" because "),
        Sample("f:2", messages=(Message("user", "where?"), Message("assistant", "here"))),
        Sample("f:3", prompt="not asked", completion="?"),
    ]
    targets = examples([np.zeros(1, np.int64)] * 3)
    found = outcomes(Task("causal-lm"), samples, targets, ["because", "there"])
    assert [(o.text, o.expected.strip(), o.predicted, o.right) for o in found] == [
        ("user: where?", "here", "there", False),
        ("why?", "because", "because", True),
    ]


def test_long_texts_are_shortened_and_no_predictions_give_nothing() -> None:
    samples = [Sample("f:1", text="x" * 5000, label="a")]
    task = Task("classification", ("a",))
    (found,) = outcomes(task, samples, examples([0]), [0])
    assert len(found.text) == LETTERS + 1
    assert outcomes(task, samples, examples([0]), []) == ()
