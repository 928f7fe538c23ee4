"""``pac plan``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pac_core.backbones import describe
from pac_core.cli.app import run
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link
from pac_core.contracts.scheduler import Plan
from pac_core.planning.cards import CARDS
from pac_core.planning.make import read_plan
from pac_core.planning.profile import analytic_profile
from pac_core.planning.profile_file import ProfileFile, write_profile
from pac_core.planning.simulate import simulate
from pac_core.planning.work import Work
from pac_core.registry import Registry
from pac_core.testing.tiny import save_tiny

CLUSTER = """\
leader: tcp://192.168.1.10:7077
link: {mbit: 1000, latency_ms: 0.1}
devices:
  - {name: desk, card: laptop}
  - {name: nano, card: jetson-nano}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with ``cluster.yaml``, ``tiny``, an encoder, and ``both``, which has a decoder too."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    save_tiny(tmp_path / "tiny", "bert")
    save_tiny(tmp_path / "both", "t5")
    return tmp_path


@pytest.fixture
def pac(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``pac plan`` in that folder: exit code, stdout, stderr."""

    def command(*arguments: str, model: str = "tiny") -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["plan", "--model", str(home / model), "--cluster", str(home / "cluster.yaml"), *arguments])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def told(pac: Any) -> Callable[..., dict[str, Any]]:
    """What ``pac plan --json`` says."""

    def of(*arguments: str, model: str = "tiny") -> dict[str, Any]:
        code, out, _ = pac("--json", *arguments, model=model)
        assert code == 0
        found: dict[str, Any] = json.loads(out)
        return found

    return of


def test_the_plan_is_shown_with_time_memory_and_what_it_beat(pac: Any) -> None:
    code, out, err = pac("--scheduler", "data-parallel")
    assert (code, err) == (0, "")
    for part in ("encoder [0, 3)", "mini-batch", "epoch 1", "spreading", "cached epoch", "3 epochs of 1000 samples"):
        assert part in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["desk"][3:6] == ["12.0", "GiB", rows["desk"][5]]
    assert rows["nano"][3:5] == ["1.3", "GiB"]
    assert rows["*"][1] == "data-parallel"
    assert {*Registry().names("schedulers")} - {"data-parallel"} <= {*rows}
    assert "the run would be done sooner" in out


@pytest.mark.parametrize("fill", ["prefill", "train-while-fill"])
def test_what_is_predicted_is_what_the_simulator_says(told: Any, home: Path, fill: Any) -> None:
    given = ["--epochs", "4", "--samples", "320", "--tokens", "40", "--reduction", "4", "--scheduler", "pipeline"]
    found = told(*given, "--fill", fill, "--cache-dtype", "int8")
    plan = Plan.from_json(found["plan"])
    info = describe(str(home / "tiny"), Registry())
    profile = analytic_profile(info, AdapterConfig(reduction=4), ENCODER, head=False)
    devices = (CARDS["laptop"].device("desk"), CARDS["jetson-nano"].device("nano"))
    cluster = Cluster(devices, default=Link(1e9, 1e-4))
    job = Job(32, None, 40, 40)
    expected = simulate(plan, profile, cluster, job, Work.of_run(320, 4, fill, "int8"))
    first, spread, cached = (phase.seconds for phase in expected.phases)
    each = cached / (4 if fill == "prefill" else 3)
    predicted = found["predicted"]
    assert predicted["seconds"] == pytest.approx(expected.seconds)
    assert predicted["mini_batch_seconds"] == pytest.approx(simulate(plan, profile, cluster, job).step_s)
    assert predicted["epoch_1_seconds"] == pytest.approx(first + (each if fill == "prefill" else 0.0))
    assert predicted["prefill_seconds"] == (pytest.approx(first) if fill == "prefill" else None)
    assert predicted["spread_seconds"] == pytest.approx(spread)
    assert predicted["cached_epoch_seconds"] == pytest.approx(each)
    assert predicted["seconds"] == pytest.approx(predicted["epoch_1_seconds"] + spread + 3 * each)
    assert [device["device"] for device in found["devices"]] == ["desk", "nano"]
    (chosen,) = (other for other in found["alternatives"] if other["chosen"])
    assert (chosen["scheduler"], chosen["plan"]) == ("pipeline", found["plan"])


def test_alternatives_are_sorted_and_those_without_a_plan_say_why(told: Any, home: Path) -> None:
    (home / "cluster.yaml").write_text(CLUSTER + "".join(f"  - {{name: d{i}, card: laptop}}\n" for i in range(2)))
    found = told("--scheduler", "pac")
    times = [other["seconds"] for other in found["alternatives"] if other["seconds"] is not None]
    assert times == sorted(times)
    *_, last = found["alternatives"]
    assert (last["scheduler"], last["seconds"], last["plan"]) == ("pipeline", None, None)
    assert "3 layers cannot be cut into 4 stages" in last["reason"]
    assert "exhaustive" not in {other["scheduler"] for other in found["alternatives"]}  # with four devices it is slow


def test_an_epoch_that_trains_as_it_fills_needs_no_spreading(told: Any, pac: Any) -> None:
    predicted = told("--epochs", "1", "--fill", "train-while-fill")["predicted"]
    assert predicted["seconds"] == predicted["epoch_1_seconds"]
    assert predicted["spread_seconds"] is predicted["cached_epoch_seconds"] is None
    assert "spreading" not in pac("--epochs", "1", "--fill", "train-while-fill")[1]
    assert told("--epochs", "1", "--scheduler", "pipeline")["predicted"]["spread_seconds"] > 0


def test_the_quickest_run_is_proposed_if_no_scheduler_is_asked_for(told: Any) -> None:
    found = told()
    best = found["alternatives"][0]
    assert best["chosen"]
    assert (
        best["seconds"]
        == found["predicted"]["seconds"]
        == min(a["seconds"] for a in found["alternatives"] if a["fits"])
    )
    slower = found["alternatives"][-1]["scheduler"]
    assert told("--scheduler", slower)["plan"]["scheduler"] == slower


def test_a_plan_that_the_leader_has_no_part_in_is_not_proposed(told: Any, pac: Any, home: Path) -> None:
    (home / "cluster.yaml").write_text(
        CLUSTER.replace("card: laptop", "card: raspberry-pi-5").replace("jetson-nano", "h200")
    )
    alone = told("--scheduler", "single")
    assert alone["left_out"] == ["desk"]
    found = told()
    assert "desk" not in found["left_out"]
    assert found["predicted"]["seconds"] >= alone["predicted"]["seconds"]
    _, out, err = pac("--scheduler", "single", "--output", str(home / "plan.json"))
    assert "without desk, which leads" in out
    assert f"no run can follow this plan; it can with --scheduler {found['plan']['scheduler']}" in out
    assert "no run can follow it, since desk leads and has no part in it; choose another --scheduler" in err


def test_epochs_from_the_cache_that_fit_nowhere_are_said_so(pac: Any, home: Path) -> None:
    (home / "cluster.yaml").write_text(
        CLUSTER.replace("-nano}", "-nano, memory: 8MB}").replace("top}", "top, memory: 8MB}")
    )
    _, out, _ = pac("--batch-size", "1000", "--output", str(home / "plan.json"))
    assert "does not fit" in out
    assert out.strip().endswith("no plan fits; a smaller --micro-batch-size may, or a smaller --batch-size")
    assert "by --scheduler" not in out


def test_a_file_for_the_plan_serves_finetune_and_simulate(
    pac: Any, told: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "plans" / "plan.json"
    code, _, err = pac("--scheduler", "pipeline", "--output", str(file))
    assert code == 0
    assert f"use it with pac finetune --plan {file} --devices" in err
    assert read_plan(file, ["nano", "desk"]).to_json() == told("--scheduler", "pipeline")["plan"]
    assert run(["simulate", "--plan", str(file), "--model", str(home / "tiny"), "--card", "laptop"]) == 0


def test_a_device_more_and_a_faster_network_in_one_command(told: Any, pac: Any) -> None:
    before = told("--scheduler", "data-parallel")
    given = ["--scheduler", "data-parallel", "--add", "tower=rtx-4070", "--remove", "nano", "--mbit", "10000"]
    found = told(*given, "--link", "desk:tower=20000")
    changed = found.pop("changed")
    ratio = found.pop("ratio")
    assert found == before
    assert [device["device"] for device in changed["devices"]] == ["desk", "tower"]
    assert ratio == pytest.approx(before["predicted"]["seconds"] / changed["predicted"]["seconds"])
    assert ratio > 1
    _, out, _ = pac(*given)
    assert "What if: with tower=rtx-4070, without nano, links of 10000 Mbit/s" in out
    assert out.splitlines()[-1].endswith(" times as fast")


def test_a_device_more_may_make_a_model_fit(told: Any, pac: Any, home: Path) -> None:
    small = CLUSTER.replace("laptop", "laptop, memory: 1KB").replace("jetson-nano", "jetson-nano, memory: 1KB")
    (home / "cluster.yaml").write_text(small)
    code, _, err = pac("--scheduler", "single")
    assert code == 2
    assert err.startswith("error: no device has room for the whole model: device desk, stage 1: ")
    found = told("--scheduler", "single", "--add", "tower=h200")
    assert found["plan"] is None
    assert "are missing" in found["reason"]
    assert found["ratio"] is None
    assert [device["device"] for device in found["changed"]["devices"]] == ["tower"]
    _, out, _ = pac("--scheduler", "single", "--add", "tower=h200")
    assert "no plan: no device has room" in out
    assert "not used: desk, nano; desk leads and must have part in a run" in out


def test_an_encoder_suffices_where_no_text_is_written(told: Any) -> None:
    assert {*told(model="both")["plan"]["stages"][-1]["layers"]} >= {DECODER}
    layers = [stage["layers"] for stage in told("--task", "classification", model="both")["plan"]["stages"]]
    assert {stream for held in layers for stream in held} == {ENCODER}


def test_weights_need_not_be_there(told: Any, home: Path) -> None:
    before = told()
    for file in (home / "tiny").glob("*.safetensors"):
        file.unlink()
    assert told() == before


@pytest.fixture
def measured(home: Path) -> Path:
    """A profile of ``tiny`` and of the device ``desk``, which is a hundred times as slow as its card says."""
    profile = analytic_profile(describe(str(home / "tiny"), Registry()), AdapterConfig(), ENCODER, head=False)
    card = CARDS["laptop"].device("desk")
    desk = DeviceProfile("desk", card.flops / 100, card.memory_bytes, card.flops / 100)
    found = ProfileFile(str(home / "tiny"), profile, Cluster((desk,)), Job(16, None, 20.0, 30))
    write_profile(home / "profile.json", found)
    return home / "profile.json"


def test_measured_devices_take_their_speed_from_the_profile(told: Any, measured: Path) -> None:
    by_card = told("--scheduler", "data-parallel", "--batch-size", "16", "--tokens", "20")
    found = told("--scheduler", "data-parallel", "--tokens", "20", "--profile", str(measured))
    rows = [dict(zip(each["devices"], each["rows"])) for each in (by_card["plan"]["stages"] + found["plan"]["stages"])]
    assert rows[0]["desk"] > rows[0]["nano"]
    assert rows[1]["desk"] < rows[1]["nano"]
    assert sum(rows[1].values()) == 16  # the profile's batch
    assert sum(told("--profile", str(measured), "--batch-size", "8")["plan"]["stages"][0]["rows"]) <= 8


def test_without_a_cluster_file_the_devices_of_the_profile_are_planned_for(
    measured: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(home / "tiny")]
    assert run(["plan", *model, "--profile", str(measured), "--json", "--add", "tower=h200"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [device["device"] for device in found["devices"]] == ["desk"]
    assert run(["plan", *model]) == 2
    assert "give --cluster FILE or --profile FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--add", "b=abacus"], "device card 'abacus' is not known; known: jetson-nano"),
        (["--remove", "b"], "--remove b: the cluster has no such device; it has desk, nano"),
        (["--link", "desk:nano=quick"], "write it as A:B=MBIT"),
        (["--link", "desk:nano=inf"], "write it as A:B=MBIT"),
        (["--mbit", "quick"], "Invalid value for '--mbit'"),
        (["--mbit", "inf"], "Invalid value for '--mbit'"),
        (["--samples", "1" + "0" * 24], "Invalid value for '--samples'"),
        (["--batch-size", "1000000000"], "Invalid value for '--batch-size'"),
        (["--output", "."], "--output .: it is a folder; name a file"),
        (["--output", "CLUSTER/plan.json"], "cannot write to "),
        (["--scheduler", "pack"], "scheduler 'pack' is not known; did you mean 'pac'"),
        (["--task", "poetry"], "task = 'poetry': "),
        (["--task", "seq2seq"], "task seq2seq needs a model that generates; bert is an encoder"),
        (["--adapter", "paralel"], "adapter 'paralel' is not known; did you mean 'parallel'"),
        (["--reduction", "0"], "adapter.reduction = 0"),
        (["--epochs", "0"], "epochs = 0"),
        (["--fill", "later"], "fill = 'later'"),
        (["--cache-dtype", "float64"], "cache.dtype = 'float64': it is for tests and not simulated; choose float32"),
        (["--profile", "absent.json"], "absent.json: no such file; it should hold a profile made by pac profile"),
        (["--profile", "MEASURED", "--model", "BOTH"], "a profile of "),
        (["--profile", "MEASURED", "--reduction", "4"], "adapter: "),
        (["--model", "absent"], "absent"),
        (["--cluster", "absent.yaml"], "absent.yaml: no such file; docs/cluster.md has an example of such a file"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    arguments: list[str], said: str, pac: Any, home: Path, measured: Path
) -> None:
    file = str(home / "cluster.yaml")
    places = {"MEASURED": str(measured), "BOTH": str(home / "both"), "CLUSTER/plan.json": f"{file}/plan.json"}
    given = [places.get(one, one) for one in arguments]
    code, out, err = pac(*given)
    (line,) = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert said in line


def test_a_device_of_which_nothing_is_known_is_named(pac: Any, home: Path) -> None:
    (home / "cluster.yaml").write_text(CLUSTER + "  - name: attic\n")
    code, _, err = pac()
    assert code == 2
    assert f"{home / 'cluster.yaml'}: device 'attic': nothing says how fast it is; run pac profile" in err
