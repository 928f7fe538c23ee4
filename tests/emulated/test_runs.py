"""Runs of emulated devices: they take as long, and send as much, as is predicted, and leave no adapter."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster, Job, Link
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.emulated.emulate import check_memory
from pac_core.errors import BadInput
from pac_core.finetune import FineTuner
from pac_core.planning.cards import card
from pac_core.planning.memory import stage_bytes
from pac_core.planning.profile import analytic_profile
from pac_core.planning.simulate import Timeline, simulate
from pac_core.planning.work import Work
from pac_core.registry import Registry
from pac_core.testing.scheduler import JOB, STREAMS, a_cluster, a_profile
from pac_core.testing.threads import in_threads
from pac_core.weights import describe

TOKENS = 48

FREE = Link(1e12, 0.0)
"""Between threads messages take next to no time."""

PLANS = {
    "pipeline": Plan((StagePlan({"encoder": (0, 1)}, ("a",), (2,)), StagePlan({"encoder": (1, 4)}, ("b",), (2,))), 4),
    "hybrid, uneven": Plan(
        (StagePlan({"encoder": (0, 3)}, ("a", "b"), (3, 1)), StagePlan({"encoder": (3, 4)}, ("c",), (4,))), 2, "gpipe"
    ),
}


def predicted(plan: Plan, hollow: Path) -> Timeline:
    profile = analytic_profile(
        describe(hollow, torch.float32, Registry()).info, RunConfig(model="m", train="t").adapter, "encoder", head=False
    )
    names = [name for stage in plan.stages for name in stage.devices]
    cluster = Cluster(tuple(card("jetson-nano").device(name) for name in names), default=FREE)
    work = Work(32, 2, entries="bfloat16", overlaps=True, hands_out=True, scaled=32, sums_beside=True)
    return simulate(plan, profile, cluster, Job(8, plan.micro_batch_size, TOKENS, TOKENS), work)


def measured(plan: Plan, given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run by ``plan`` on threads reports, each device with a cache of its own."""
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    names = [name for stage in plan.stages for name in stage.devices]
    devices = Cluster(tuple(card("jetson-nano").device(name) for name in names))

    def device(transport: Transport) -> dict[str, Any]:
        own = {"store": "memory", "dir": str(folder / str(transport.rank))}
        changes = {"plan": str(folder / "plan.json"), "devices": "2", "fill": "train-while-fill", "cache": own}
        tuner = FineTuner(RunConfig.build({**given, **changes}))
        if transport.rank == 0:
            return tuner.lead(lambda: transport, devices).metrics
        return tuner.take_part(transport).metrics

    return in_threads(plan.size, device)[0]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_run_takes_as_long_and_sends_as_much_as_predicted(
    plan: Plan, given: Any, hollow: Path, tmp_path: Path
) -> None:
    expected = predicted(plan, hollow)
    phases = {phase.name: phase.seconds for phase in expected.phases}
    ratios = []
    for _ in range(4):  # this machine may be busy with something else
        found = measured(plan, given(), tmp_path)
        ratios.append(found["epochs"][0]["seconds"] / (phases["scales"] + phases["fill"]))
        assert sum(device["bytes_sent"] for device in found["devices"]) == pytest.approx(expected.bytes_sent, rel=0.05)
        assert found["emulated"] is True
        if 0.93 < ratios[-1] < 1.15:
            return
    raise AssertionError(f"seconds of the first epoch, by those predicted: {ratios}")


def test_nothing_is_left_that_looks_like_an_adapter(given: Any, tmp_path: Path, caplog: Any) -> None:
    """On one device, which computes nothing either."""
    result = FineTuner(RunConfig.build(given(cache={"dir": str(tmp_path / "cache")}))).run()
    assert sorted(path.name for path in result.output.iterdir()) == [
        "checkpoint", "metrics.json", "plan.json", "report.html"
    ]  # fmt: skip
    assert json.loads((result.output / "metrics.json").read_text())["emulated"] is True
    assert "Emulated devices: they waited instead of computing" in (result.output / "report.html").read_text()
    assert "no adapter is written" in caplog.text
    assert result.metrics["cache"]["bytes"] > 32 * TOKENS * 5 * 768 * 2


def test_a_plan_that_a_card_has_no_room_for_is_refused(given: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from pac_core.planning import cards

    small = cards.CARDS["jetson-nano"]
    monkeypatch.setitem(cards.CARDS, "jetson-nano", type(small)(**{**vars(small), "usable_bytes": 100_000_000}))
    with pytest.raises(BadInput, match=r"stage 1: [\d,]+ bytes are needed and 100,000,000 there are"):
        FineTuner(RunConfig.build(given(cache={"dir": str(tmp_path / "cache")}))).run()


def test_the_larger_share_of_a_faster_device_has_to_fit() -> None:
    profile, job = a_profile(STREAMS["one"]), replace(JOB, batch_size=24, micro_batch_size=None)
    whole = {stream: (0, len(layers)) for stream, layers in profile.layers.items()}
    room = stage_bytes(profile, whole, job, 18, 1)
    check_memory(None, profile, a_cluster(3.0, 1.0, memory_bytes=room), job)
    with pytest.raises(BadInput, match=f"device d0, stage 1: {room:,} bytes are needed and {room - 1:,} there are"):
        check_memory(None, profile, a_cluster(3.0, 1.0, memory_bytes=room - 1), job)


def test_times_of_an_emulated_run_do_not_replace_those_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    config = RunConfig(model="m", train="t", emulate="jetson-nano", output=tmp_path)
    with pytest.raises(BadInput, match=r"holds an adapter, whose metrics .* give another --output"):
        FineTuner(config).run()
