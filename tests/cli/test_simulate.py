"""``pac simulate``."""

import json

import pytest

from pac_core.cli.app import run


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
        ([], "error: nothing to simulate; give --paper icpp24"),
        (["--paper", "icpp24", "--no-plugin", "pac-schedulers"], "scheduler 'pac' is not known"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", *arguments]) == 2
    assert said in capsys.readouterr().err
