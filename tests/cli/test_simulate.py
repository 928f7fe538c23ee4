"""``pac simulate``."""

import json
from pathlib import Path
from typing import Any

import pytest

from pac_core.cli.app import run
from pac_core.testing.tiny import save_tiny

PLAN: dict[str, Any] = {
    "scheduler": "pac",
    "stages": [
        {"devices": ["home/0", "home/1"], "layers": {"encoder": [0, 1]}, "rows": [2, 2]},
        {"devices": ["home/2"], "layers": {"encoder": [1, 3]}, "rows": [4]},
    ],
    "micro_batch_size": 4,
    "micro_batches": 4,
    "backbone_dtype": "float32",
}


@pytest.fixture
def plan(tmp_path: Path) -> str:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    return str(tmp_path / "plan.json")


@pytest.fixture
def model(tmp_path: Path) -> str:
    save_tiny(tmp_path / "tiny", "bert")
    return str(tmp_path / "tiny")


def test_a_plan_is_shown_with_its_phases_memory_and_timeline(
    plan: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", "--plan", plan, "--model", model, "--card", "jetson-nano"]) == 0
    shown = capsys.readouterr().out
    for part in ("encoder [1, 3)", "spread", "cached", "of 1.36 GB", "F forward, B backward"):
        assert part in shown
    assert [line[:6] for line in shown.splitlines()[-4:-1]] == ["home/0", "home/1", "home/2"]


def test_a_slower_link_or_device_takes_longer(plan: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(*more: str) -> float:
        assert run(["simulate", "--plan", plan, "--model", model, "--card", "h200", "--json", *more]) == 0
        return float(json.loads(capsys.readouterr().out)["seconds"])

    fast = seconds("--mbit", "1000")
    assert seconds("--mbit", "10") > fast
    assert seconds("--mbit", "10", "--shared") > seconds("--mbit", "10")
    assert seconds("--card", "home/2=raspberry-pi-5") > fast
    assert seconds("--epochs", "1") < fast


def test_the_papers_tables_are_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--paper", "icpp24", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["calibrated_on"]) <= 4
    assert {"table2", "figure9a", "figure10"} <= set(told)


def test_and_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--paper", "icpp24"]) == 0
    shown = capsys.readouterr().out
    assert "### Table 2: hours" in shown
    assert "12 of 12 groupings" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--paper", "icpp25"], "error: paper 'icpp25' is not known; known: icpp24"),
        ([], "error: give either --plan FILE or --paper icpp24"),
        (["--paper", "icpp24", "--no-plugin", "pac-schedulers"], "scheduler 'pac' is not known"),
        (["--plan", "PLAN"], "give --model and at least one --card"),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "abacus"],
            "device card 'abacus' is not known; known: jetson",
        ),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "x=h200"],
            "the plan has no such device; it has home/0, home/1",
        ),
        (["--plan", "PLAN", "--model", "MODEL", "--card", "home/0=h200"], "device 'home/1' has no card; give --card"),
        (["--plan", "absent.json", "--model", "MODEL", "--card", "h200"], "absent.json"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    arguments: list[str], said: str, plan: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"PLAN": plan, "MODEL": model}.get(argument, argument) for argument in arguments]
    capsys.readouterr()
    assert run(["simulate", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_plan_of_another_model_is_refused(plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "other", "gpt2")
    capsys.readouterr()
    assert run(["simulate", "--plan", plan, "--model", str(tmp_path / "other"), "--card", "h200"]) == 2
    assert "the plan runs no stream of" in capsys.readouterr().err
