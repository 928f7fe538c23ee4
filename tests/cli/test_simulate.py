"""``pac simulate``."""

import json
from pathlib import Path
from typing import Any

import pytest

from pac_core.cli.app import run
from pac_core.planning.icpp24 import beyond
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
    for part in ("encoder [1, 3)", "prefill", "spread", "cached", "of 1.36 GB", "F forward, B backward"):
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


def test_how_the_run_goes_changes_its_phases(plan: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str) -> dict[str, Any]:
        arguments = ["--plan", plan, "--model", model, "--card", "jetson-nano", "--tokens", "60", "--json", *more]
        assert run(["simulate", *arguments]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    plain = told()
    assert [phase["phase"] for phase in plain["phases"]] == ["prefill", "spread", "cached"]
    assert [phase["phase"] for phase in told("--fill", "train-while-fill")["phases"]] == ["fill", "spread", "cached"]
    written = {f: told("--cache-dtype", f)["phases"][0]["bytes_written"] for f in ("float32", "bfloat16", "int8")}
    assert written["float32"] == 2 * written["bfloat16"] > written["bfloat16"] > written["int8"]
    assert told("--slow", "home/2=3", "--slow", "home/0=2")["seconds"] > told("--slow", "home/2=3")["seconds"]
    assert told("--slow", "home/2=3")["seconds"] > plain["seconds"]
    jittered = told("--jitter", "0.5", "--seed", "3")
    assert jittered == told("--jitter", "0.5", "--seed", "3")
    assert jittered["seconds"] != told("--jitter", "0.5", "--seed", "4")["seconds"] != plain["seconds"]


def test_a_plan_is_drawn(plan: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.svg", "run.html"):
        file = tmp_path / name
        arguments = ["--plan", plan, "--model", model, "--card", "jetson-nano", "--plot", str(file)]
        assert run(["simulate", *arguments]) == 0
        assert "home/2: forward 3" in file.read_text(encoding="utf-8")
    capsys.readouterr()


def test_throughput_by_number_of_devices(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(model) / "model.safetensors").unlink()  # the configuration suffices
    arguments = ["--model", model, "--card", "jetson-nano", "--scheduler", "data-parallel", "--devices", "1,2-4"]
    assert run(["simulate", *arguments, "--plot", str(tmp_path / "rates.svg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert "from the cache" in (tmp_path / "rates.svg").read_text(encoding="utf-8")
    assert run(["simulate", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [rate["devices"] for rate in told["rates"]] == [1, 2, 3, 4]
    assert f"{told['rates'][3]['first_samples_per_second']:.2f}" == lines[4].split()[1]


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


def test_and_what_our_runs_add(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(beyond, "SHAPES", {"t5-base": beyond.SHAPES["t5-base"]})
    monkeypatch.setattr(beyond, "DEVICES", (4,))
    assert run(["simulate", "--paper", "icpp24-beyond", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["calibrated_on"]) <= 4
    assert told["beyond"]["4"][beyond.PUBLISHED]["t5-base"]["hours"] == pytest.approx(0.14, rel=0.02)
    assert run(["simulate", "--paper", "icpp24-beyond"]) == 0
    assert "| int8 cache | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--paper", "icpp25"], "error: paper 'icpp25' is not known; known: icpp24, icpp24-beyond"),
        ([], "error: give one of --plan FILE, --scheduler NAME --devices NUMBERS, --paper icpp24|icpp24-beyond"),
        (["--plan", "PLAN", "--paper", "icpp24"], "give one of --plan FILE"),
        (["--plan", "PLAN", "--devices", "2"], "--scheduler NAME and --devices NUMBERS go together"),
        (["--scheduler", "pac"], "--scheduler NAME and --devices NUMBERS go together"),
        (["--paper", "icpp24", "--plot", "x.svg"], "leave it out with --paper"),
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
        (["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--slow", "x=2"], "'x' is to be slow and is not in"),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--slow", "2"],
            "--slow 2: write it as DEVICE=FACTOR",
        ),
        (["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--slow", "home/0=-1"], "slower by the factor -1"),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--plot", "x.png"],
            "--plot x.png: '.png' is not known; name it .svg for a picture or .html for a page",
        ),
        (
            ["--scheduler", "pac", "--devices", "0-2", "--model", "MODEL", "--card", "h200"],
            "give numbers from 1 to 1000",
        ),
        (["--scheduler", "pac", "--devices", "2", "--model", "MODEL", "--card", "x=h200"], "all devices are alike"),
        (["--plan", "absent.json", "--model", "MODEL", "--card", "h200"], "absent.json"),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--slow", "home/0=1e308"],
            "slower by the factor 1e+308; give a number from 1e-06 to 1e+06",
        ),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--slow", "home/0=2", "--slow", "home/0=3"],
            "--slow home/0=3: 'home/0' has a factor already",
        ),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--card", "laptop"],
            "--card laptop: there is a card for all devices that are not named already",
        ),
        (["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--latency", "inf"], "Invalid value for '--latency'"),
        (["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--mbit", "inf"], "Invalid value for '--mbit'"),
        (
            ["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--samples", "1000000000000"],
            "Invalid value for '--samples'",
        ),
        (["--plan", "PLAN", "--model", "MODEL", "--card", "h200", "--plot", "PLAN/x.svg"], "cannot write to "),
        (
            ["--scheduler", "pac", "--devices", "1-999999999", "--model", "MODEL", "--card", "h200"],
            "--devices 1-999999999: give numbers from 1 to 1000",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    arguments: list[str], said: str, plan: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"PLAN": plan, "MODEL": model, "PLAN/x.svg": f"{plan}/x.svg"}
    given = [places.get(argument, argument) for argument in arguments]
    capsys.readouterr()
    assert run(["simulate", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_plan_of_another_model_is_refused(plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "other", "gpt2")
    capsys.readouterr()
    assert run(["simulate", "--plan", plan, "--model", str(tmp_path / "other"), "--card", "h200"]) == 2
    assert "the plan runs no stream of" in capsys.readouterr().err


def test_a_plan_for_more_layers_is_refused_with_its_file(
    plan: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(plan).write_text(json.dumps({**PLAN, "stages": PLAN["stages"][:1], "micro_batch_size": 4}))
    assert run(["simulate", "--plan", plan, "--model", model, "--card", "h200"]) == 2
    assert f"{plan}: no plan for {model}: the stages run encoder [0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 100_000, '{"micro_batches": ' + "9" * 5000 + "}"], ids=["deep", "long"])
def test_json_that_no_program_writes_is_refused(
    text: str, plan: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(plan).write_text(text)
    assert run(["simulate", "--plan", plan, "--model", model, "--card", "h200"]) == 2
    assert capsys.readouterr().err == (
        f"error: {plan}: too deep, or a number in it is too long; it should hold the plan\n"
    )
