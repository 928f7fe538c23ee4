"""Plans: JSON there and back, what is refused and how, how rows are split."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pac_core.contracts.backbone import DECODER, ENCODER, Stream
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput

BERT = (Stream(ENCODER, 6, False),)
T5 = (Stream(ENCODER, 2, False), Stream(DECODER, 3, True, True))


def stage(layers: dict[str, tuple[int, int]], *devices: str, rows: tuple[int, ...] | None = None) -> StagePlan:
    return StagePlan(layers, devices, rows or (2,) * len(devices))


def two_stages() -> Plan:
    return Plan((stage({ENCODER: (0, 2)}, "a", "b", rows=(3, 1)), stage({ENCODER: (2, 6)}, "c", rows=(4,))), 5)


@st.composite
def plans(draw: Any) -> Plan:
    """Any plan over the T5 chain of five layers."""
    cuts = sorted(draw(st.sets(st.integers(1, 4), max_size=3)))
    size = draw(st.integers(3, 9))
    stages, names = [], iter("abcdefghijkl")
    for first, last in zip([0, *cuts], [*cuts, 5]):
        layers = {ENCODER: (min(first, 2), min(last, 2)), DECODER: (max(first - 2, 0), max(last - 2, 0))}
        count = draw(st.integers(1, 3))
        marks = sorted(draw(st.sets(st.integers(1, size - 1), min_size=count - 1, max_size=count - 1)))
        rows = tuple(end - start for start, end in zip([0, *marks], [*marks, size]))
        held = {name: at for name, at in layers.items() if at[0] < at[1]}
        stages.append(StagePlan(held, tuple(next(names) for _ in rows), rows))
    schedule = draw(st.sampled_from(["1f1b", "gpipe"]))
    limit = draw(st.none() | st.integers(1, 4)) if schedule == "1f1b" else None
    return Plan(
        tuple(stages), draw(st.integers(1, 8)), schedule, "any", limit, draw(st.sampled_from(["native", "int8"]))
    )


@given(plans())
def test_a_plan_comes_back_from_json_as_it_went(plan: Plan) -> None:
    plan.check(T5)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_that_says_nothing_of_weights_is_for_native_ones() -> None:
    older = two_stages().to_json()
    del older["weights"]
    assert Plan.from_json(older) == two_stages()
    assert "int8" not in two_stages().table()
    assert replace(two_stages(), weights="int8").table().endswith("schedule 1f1b, int8 weights")


@given(plans())
def test_every_rank_has_one_place(plan: Plan) -> None:
    places = [plan.place(rank) for rank in range(plan.size)]
    assert places == [(i, j) for i, stage in enumerate(plan.stages) for j in range(len(stage.devices))]
    assert [rank for i in range(len(plan.stages)) for rank in plan.group(i)] == list(range(plan.size))
    with pytest.raises(BadInput, match="not in a plan"):
        plan.place(plan.size)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 30))
def test_rows_are_split_in_proportion(weights: list[int], rows: int) -> None:
    group = StagePlan({ENCODER: (0, 1)}, tuple(map(str, range(len(weights)))), tuple(weights))
    parts = group.split(rows)
    assert sum(parts) == rows
    assert all(abs(part - rows * w / sum(weights)) < 1 for part, w in zip(parts, weights))
    assert group.split(sum(weights)) == tuple(weights)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Plan((), 1), "no stage"),
        (lambda: Plan((stage({ENCODER: (0, 6)}, "a"),), 0), "0 micro-batches"),
        (lambda: Plan((stage({ENCODER: (0, 6)}, "a"),), 1, "zigzag"), "'zigzag' is not known; choose from 1f1b, gpipe"),
        (lambda: replace(two_stages(), weights="int2"), "'int2' are not known; choose from native, int8"),
        (lambda: Plan((stage({ENCODER: (0, 6)}, "a", "a"),), 1), "device 'a' is in the plan twice"),
        (lambda: Plan((stage({ENCODER: (0, 2)}, "a"), stage({ENCODER: (2, 6)}, "b", "c")), 1), r"take \[2, 4\] rows"),
        (lambda: stage({ENCODER: (0, 6)}), "no device"),
        (lambda: stage({ENCODER: (0, 6)}, "a", "b", rows=(1,)), r"rows are \[1\]; give each of its 2 devices"),
        (lambda: stage({ENCODER: (0, 6)}, "a", "b", rows=(1, 0)), "at least 1"),
        (lambda: stage({ENCODER: (3, 3)}, "a"), r"layers are encoder \[3, 3\)"),
        (lambda: stage({}, "a"), "layers are none"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        make()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "slices",
    [
        [{ENCODER: (0, 2)}, {ENCODER: (3, 6)}],
        [{ENCODER: (0, 3)}, {ENCODER: (2, 6)}],
        [{ENCODER: (3, 6)}, {ENCODER: (0, 3)}],
        [{ENCODER: (0, 5)}],
        [{ENCODER: (0, 7)}],
    ],
    ids=str,
)
def test_stages_must_run_the_chain_once_and_in_order(slices: list[dict[str, tuple[int, int]]]) -> None:
    plan = Plan(tuple(stage(held, str(i)) for i, held in enumerate(slices)), 1)
    with pytest.raises(BadInput, match=r"together they must run encoder \[0, 6\) once and in order"):
        plan.check(BERT)


def test_the_encoder_comes_before_the_decoder_and_no_other_stream_is_run() -> None:
    with pytest.raises(BadInput, match="once and in order"):
        Plan((stage({ENCODER: (0, 1), DECODER: (0, 3)}, "a"), stage({ENCODER: (1, 2)}, "b")), 1).check(T5)
    with pytest.raises(BadInput, match="stream 'decoder', which this task does not; it runs encoder"):
        Plan((stage({ENCODER: (0, 6), DECODER: (0, 3)}, "a"),), 1).check(BERT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"micro_batches": "5"}, "mine.json: micro_batches: .*integer"),
        ({"stages": [{"devices": ["a"], "layers": {"encoder": [0, 6]}}]}, "mine.json: stages.0.rows: Field required"),
        ({"stages": []}, "mine.json: the plan has no stage"),
        ({"colour": "red"}, "mine.json: colour"),
        ({"micro_batch_size": 7}, "mine.json: micro_batch_size is 7, but the rows of its stages add up to 4"),
        ({"schedule": "zigzag"}, "mine.json: schedule: .*'1f1b' or 'gpipe'"),
    ],
)
def test_json_that_is_no_plan_is_refused_by_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        Plan.from_json({**two_stages().to_json(), **change}, "mine.json")
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=r"mine\.json: the plan: "):
        Plan.from_json([1], "mine.json")


def test_a_plan_reads_as_a_table() -> None:
    assert two_stages().table().splitlines() == [
        "stage  layers          device  rows",
        "1      encoder [0, 2)  a       3",
        "                       b       1",
        "2      encoder [2, 6)  c       4",
        "5 micro-batches of 4 rows, schedule 1f1b",
    ]
