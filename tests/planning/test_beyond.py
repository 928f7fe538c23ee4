"""What our runs add to the paper's, simulated at its setting."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from pac_core.planning.icpp24 import beyond as module
from pac_core.planning.icpp24.beyond import DEVICES, HETERO, PADDED, PUBLISHED, REAL_TOKENS, WAYS, Beyond, beyond
from pac_core.planning.icpp24.calibrate import START, predicted_hours
from pac_core.planning.icpp24.facts import Facts
from pac_core.planning.icpp24.models import SHAPES
from pac_core.planning.icpp24.show import beyond_markdown
from pac_core.registry import Registry

SETTING = replace(
    START, forward_flops=1.02e11, backward_flops=2.07e11, memory_bytes=1_360_612_736, disk_bytes_per_s=58e6
)
"""Near what is calibrated, which takes a second."""


class Without(Registry):
    """Without the planner that takes a second for a plan."""

    def names(self, kind: str) -> list[str]:
        return [name for name in super().names(kind) if name != HETERO]


@cache
def found() -> Beyond:
    return beyond(SETTING, Facts.load(), Without())


def hours(devices: int, way: str) -> list[float]:
    by_model = found().hours[devices][way]
    return [by_model[model] or float("inf") for model in SHAPES]


def test_published_pac_is_the_one_of_table_2() -> None:
    for model, ours in found().hours[4][PUBLISHED].items():
        assert ours == pytest.approx(predicted_hours(f"{model}/pac/mrpc", SETTING, Facts.load(), Registry()))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("way", ["no padding", "bfloat16 cache", "int8 cache", "overlapped spreading", "int8 backbone"])
def test_each_of_these_makes_no_model_slower(way: str, devices: int) -> None:
    assert all(ours <= theirs for ours, theirs in zip(hours(devices, way), hours(devices, PUBLISHED)))


@pytest.mark.parametrize("devices", DEVICES)
def test_all_together_are_twice_as_fast_and_would_not_be_with_padding(devices: int) -> None:
    gains = [theirs / ours for theirs, ours in zip(hours(devices, PUBLISHED), hours(devices, "all, int8 cache"))]
    assert min(gains) >= 2
    printed = [found().paper[model] for model in SHAPES]
    assert min(theirs / ours for theirs, ours in zip(printed, hours(devices, "all, int8 cache"))) >= 2
    assert min(theirs / ours for theirs, ours in zip(hours(devices, PUBLISHED), hours(devices, PADDED))) < 2


def test_a_planner_that_is_not_there_has_no_row_of_its_own() -> None:
    assert set(WAYS) - set(found().hours[4]) == {HETERO}


def test_a_better_planner_is_not_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHAPES", {"t5-large": SHAPES["t5-large"]})
    monkeypatch.setattr(module, "DEVICES", (4,))
    with_it = beyond(SETTING, Facts.load(), Registry()).hours[4]
    assert (with_it[HETERO]["t5-large"] or 9.0) <= hours(4, PUBLISHED)[2]


def test_it_is_plain_data_with_ratios() -> None:
    told: Any = json.loads(json.dumps(found().to_json(), allow_nan=False))
    assert set(told) == {"4", "8"}
    cell = told["4"]["int8 cache"]["t5-base"]
    assert cell["times_paper"] == pytest.approx(0.14 / cell["hours"])
    assert cell["times_published"] == pytest.approx(told["4"][PUBLISHED]["t5-base"]["hours"] / cell["hours"])


def test_the_text_explains_each_way_and_says_whether_the_goal_is_reached() -> None:
    text = beyond_markdown(found())
    for name in found().hours[4]:
        assert f"| {name} | " in text
        assert WAYS[name].why in text
    assert text.count("is reached without int8 backbones") == len(DEVICES)
    assert f"real tokens alone, {REAL_TOKENS:.0f} of 128" in text
