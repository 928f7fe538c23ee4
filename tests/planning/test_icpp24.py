"""The paper's tables: the format that is promised, how near the predictions are, and that none is copied."""

import copy
import json
from functools import cache
from typing import Any

import pytest

from pac_core.contracts.cluster import Profile
from pac_core.planning.cost import costs
from pac_core.planning.icpp24.calibrate import CELLS
from pac_core.planning.icpp24.facts import DATASETS, Facts
from pac_core.planning.icpp24.models import SHAPES, job, profile
from pac_core.planning.icpp24.show import markdown
from pac_core.planning.icpp24.tables import Reproduction, pairs, reproduce
from pac_core.registry import Registry


@cache
def found() -> Reproduction:
    return reproduce(Facts.load(), Registry())


def predictions(reproduction: Reproduction) -> list[Any]:
    told = reproduction.to_json()
    tables = ("table2", "figure9a", "figure10", "table1", "figure8a", "figure8b", "figure11")
    return [pair["predicted"] for name in tables for pair in pairs(told[name])]


def scaled(value: Any, factor: float) -> Any:
    """All numbers of a nested structure times a factor; None, which is out of memory, becomes a number."""
    if isinstance(value, dict):
        return {key: scaled(part, factor) for key, part in value.items()}
    if isinstance(value, list):
        return [scaled(part, factor) for part in value]
    return value * factor if isinstance(value, int | float) else value


def with_other_results() -> Facts:
    """The paper, had it measured something else wherever we did not calibrate."""
    data = copy.deepcopy(dict(Facts.load().data))
    kept = {cell: Facts.load().hours(cell) for cell in CELLS}
    for name in ("table1_memory_gb", "figure8a_seconds_per_sample_fwd_bwd", "figure3_tflops_fwd_bwd"):
        data[name] = scaled(data[name], 3.0)
    for name in ("figure8b_peak_gb_weights_activations_gradients", "figure9a_samples_per_second_no_cache"):
        data[name] = {key: value if key == "devices" else scaled(value, 3.0) for key, value in data[name].items()}
    data["figure11_mrpc_hours"] = {
        key: value if key == "epochs" else scaled(value, 3.0) for key, value in data["figure11_mrpc_hours"].items()
    }
    data["figure10_grouping"] = {model: {count: [1] for count in by} for model, by in data["figure10_grouping"].items()}
    hours = data["table2_hours"]
    for model in SHAPES:
        hours[model] = {row: [7.0] * 4 if cells is None else scaled(cells, 3.0) for row, cells in hours[model].items()}
    for cell, value in kept.items():
        model, *row, dataset = cell.split("/")
        hours[model]["/".join(row)][DATASETS.index(dataset)] = value
    return Facts(data)


def test_at_most_four_cells_are_calibrated_on_and_no_other_result_moves_a_prediction() -> None:
    assert len(CELLS) <= 4
    other = reproduce(with_other_results(), Registry())
    assert predictions(other) == predictions(found())
    theirs = [pair["paper"] for pair in pairs(other.to_json()["table2"])]
    assert theirs != [pair["paper"] for pair in pairs(found().to_json()["table2"])]


@pytest.mark.parametrize("cell", CELLS)
def test_the_calibrated_cells_do(cell: str) -> None:
    """So the test above would notice a cell that is read."""
    data = copy.deepcopy(dict(Facts.load().data))
    model, *row, dataset = cell.split("/")
    data["table2_hours"][model]["/".join(row)][DATASETS.index(dataset)] *= 0.6
    assert predictions(reproduce(Facts(data), Registry())) != predictions(found())


def test_table_2() -> None:
    summary = found().summary()
    assert (summary["table2_out_of_memory_right"], summary["table2_combinations"]) == (30, 30)
    assert summary["table2_median_error"] <= 0.10
    assert summary["table2_largest_error"] <= 0.30


def test_figure_9a_and_figure_10() -> None:
    summary = found().summary()
    assert summary["figure9a_median_error"] <= 0.10
    assert (summary["figure10_right"], summary["figure10_groupings"]) == (12, 12)


def test_the_json_has_the_promised_form() -> None:
    told = json.loads(json.dumps(found().to_json(), allow_nan=False))
    facts = Facts.load().data
    assert told["calibrated_on"] == list(CELLS)
    assert {model: set(rows) for model, rows in told["table2"].items()} == {m: set(found().table2[m]) for m in SHAPES}
    assert told["table2"]["t5-base"]["pac"]["mrpc"]["paper"] == 0.14
    assert told["table2"]["t5-base"]["full/standalone"]["mrpc"] == {"paper": None, "predicted": None}
    assert told["figure10"]["t5-large"]["8"] == {"paper": [3, 3, 2], "predicted": [3, 3, 2]}
    for model in SHAPES:
        assert set(told["table2"][model]["pac"]) == set(DATASETS)
        assert set(told["figure9a"][model]) == {"eddl", "eco-fl", "pac"}
        assert set(told["figure9a"][model]["pac"]) == {"2", "4", "6", "8"}
        assert set(told["figure10"][model]) == set(facts["figure10_grouping"][model])


@pytest.mark.parametrize("model", SHAPES)
def test_the_work_of_a_forward_pass_is_that_of_figure_3(model: str) -> None:
    """It is printed to three digits, and nothing is fitted to it."""
    printed = Facts.load().data["figure3_tflops_fwd_bwd"][model]["full"]
    found = costs(profile(model, "full"), job(16, None))
    assert 16 * found.forward_flops[-1] / 1e12 == pytest.approx(printed[0], rel=0.002)
    assert 16 * found.backward_flops[-1] / 1e12 == pytest.approx(printed[1], rel=0.002)


@pytest.mark.parametrize(("model", "millions"), [("t5-base", 223), ("bart-large", 406), ("t5-large", 738)])
def test_the_models_have_their_weights(model: str, millions: int) -> None:
    made: Profile = profile(model, "pac")
    (layers,) = made.layers.values()
    counted = sum(layer.weight_bytes for layer in layers) + sum(made.embedding_bytes.values())
    assert counted / 4e6 == pytest.approx(millions, rel=0.01)


def test_the_text_shows_both_numbers_of_every_cell() -> None:
    text = markdown(found())
    assert "30 of 30" in text
    assert text.count(" / ") == sum(1 for _ in predictions(found()))
    assert "| full/standalone | — / — |" in text
