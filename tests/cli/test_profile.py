"""``pac profile``."""

import json
from pathlib import Path
from typing import Any

import pytest

from pac_core.cli.app import run
from pac_core.planning.profile_file import read_profile
from pac_core.testing.tiny import tiny_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: Any) -> str:
    """A folder with a configuration and no weights."""
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(tiny_model("bert").config.to_json_string(use_diff=False))
    return str(tmp_path / "model")


def test_speeds_cache_and_memory_are_shown_and_saved(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    output = str(tmp_path / "profile.json")
    short = ("--reduction", "4", "--max-length", "16", "--seconds", "0.2")
    assert run(["profile", "--model", model, "--output", output, *short]) == 0
    told = capsys.readouterr()
    for part in ("encoder backbone", "encoder side backward", "median error", "cache read", "tokens"):
        assert part in told.out
    assert "saved to" in told.err
    found = read_profile(Path(output))
    assert found.model == model
    assert found.versions["torch"]
    assert run(["profile", "--model", model, "--output", output, *short, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["schema"] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "{model}", "--cluster", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "{model}", "--task", "dancing"], "task"),
        (["--model", "{model}", "--set", "adapter.nam=x"], "adapter.nam"),
        (["--model", "{model}", "--task", "seq2seq"], "encoder"),
        (["--model", "{model}", "--reduction", "7"], "reduction"),
        (["--model", "{model}", "--cluster", "{model}"], "give a cluster file, as in cluster.yaml"),
        (["--model", "{model}", "--cluster", "c.yaml", "--devices", "2"], "leave --devices out"),
        (["--model", "{model}", "--output", "{model}"], "it is a folder; name a file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: list[str], named: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{model}", model) for argument in arguments]
    assert run(["profile", "--output", str(tmp_path / "out.json"), *given]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert named in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert not (tmp_path / "out.json").exists()
