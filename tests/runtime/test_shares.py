"""Devices of different speeds: they own as much as they are fast, and end with what one device has."""

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster, DeviceProfile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.finetune import FineTuner, RunResult
from pac_core.runtime import job, load
from pac_core.runtime.checkpoint import SHARES_NAME, Progress, noted_shares
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.optimizer import SPARE, gradient_vector, make_optimizer
from pac_core.runtime.team import ALONE, Replicas, Team
from pac_core.runtime.train import Trainer, train_epoch
from pac_core.shares import evened
from pac_core.testing.stages import KINDS, OPTIMIZER, texts, whole_model
from pac_core.testing.threads import in_threads

EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}

SPEEDS = st.lists(st.sampled_from([0.01, 0.2, 0.9, 1.0, 3.0]), min_size=2, max_size=4)


def trained(kind: str, lengths: list[int], config: RunConfig, team: Team) -> dict[str, torch.Tensor]:
    """Weights after two epochs, losses, and the last gradients, from clipped steps over batches of any texts."""
    model = copy.deepcopy(whole_model(kind))
    optimizer = make_optimizer(model, OPTIMIZER)
    data = team.share_out(texts(kind, lengths, 0), config.batch_size, config.seed)
    count = -(-len(lengths) // config.batch_size)
    trainer = Trainer(config, model, optimizer, data, count, Path("x"), {}, StopFlag(), lambda *told: None, team)
    ends = [train_epoch(trainer, Progress(epoch=epoch)) for epoch in (1, 2)]
    losses = torch.tensor([end.loss_sum for end in ends], dtype=torch.float64)
    return {"losses": losses, "gradients": gradient_vector(optimizer)[:-SPARE].clone(), **model.state_dict()}


@given(
    kind=st.sampled_from(KINDS),
    speeds=SPEEDS,
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=11),
    batch=st.integers(1, 6),
    micro=st.none() | st.integers(1, 3),
    waits=st.booleans(),
)
@settings(deadline=None, max_examples=20, phases=[Phase.generate])
def test_uneven_shares_train_as_one_device(
    kind: str, speeds: list[float], lengths: list[int], batch: int, micro: int | None, waits: bool
) -> None:
    """Some may have no row of any batch; sums go on beside the backward pass of the others, or after it."""
    changes = {"batch_size": batch, "micro_batch_size": micro, "optimizer.max_grad_norm": 0.5, "optimizer.lr": 1e-2}
    config = RunConfig.build({}, {"model": "tiny", "train": "drawn", **changes})

    def device(transport: Transport) -> dict[str, torch.Tensor]:
        transport.waits = waits
        return trained(kind, [3, *lengths], config, Replicas(transport, evened(speeds)))

    expected = trained(kind, [3, *lengths], config, ALONE)
    first, *others = in_threads(len(speeds), device)
    for name, wanted in expected.items():
        torch.testing.assert_close(first[name], wanted, msg=name, **CLOSE)
        assert all(torch.equal(other[name], first[name]) for other in others), name


def cluster(**speeds: float) -> Cluster:
    return Cluster(tuple(DeviceProfile(name, speed, 1 << 30) for name, speed in speeds.items()))


@pytest.fixture
def over(config: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., RunResult]:
    """A run whose devices are threads, with a memory each, as fast as a cluster says; gives the leader's result."""
    attach, lock = load.attach, threading.Lock()

    def one_at_a_time(*args: Any) -> Any:
        with lock:  # threads draw first weights from one generator
            return attach(*args)

    monkeypatch.setattr(load, "attach", one_at_a_time)
    monkeypatch.setattr(job, "attach", one_at_a_time)

    def run(rows: Any, devices: Cluster, **changes: Any) -> RunResult:
        size = len(devices.devices)
        own = [{"cache__dir": tmp_path / f"{rank}", "devices": size} for rank in range(size)]
        configs = [config(rows, **{**EXACT, **changes, **one}) for one in own]  # each writes the rows anew

        def device(transport: Transport) -> RunResult:
            tuner = FineTuner(configs[transport.rank])
            if transport.rank:
                return tuner.take_part(transport)
            return tuner.lead(lambda: transport, devices)

        return in_threads(size, device)[0]

    return run


FAR_APART = {"desk": 1e10, "nano": 2e9, "clock": 1e7}
"""Of a batch of 8 the first works on 7 rows, the second on one, and the last on none."""

STAGES = Plan(
    (StagePlan({"encoder": (0, 1)}, ("clock", "nano"), (1, 1)), StagePlan({"encoder": (1, 3)}, ("desk",), (2,))), 4
)


def assert_same(found: RunResult, one: RunResult, weights: Any) -> None:
    for name, wanted in weights(one).items():
        torch.testing.assert_close(weights(found)[name], wanted, msg=name, **CLOSE)
    assert found.metrics["eval"] == pytest.approx(one.metrics["eval"], rel=1e-9)


@pytest.mark.parametrize(
    ("plan", "fill"), [(None, "prefill"), (STAGES, "prefill"), (STAGES, "train-while-fill")],
    ids=["whole models", "stages ahead", "stages that train"],
)  # fmt: skip
def test_a_device_without_any_row_takes_part_in_a_run(
    run: Any, over: Any, weights: Any, texts: Any, write: Any, tmp_path: Path, no_dropout: None,
    plan: Plan | None, fill: str,
) -> None:  # fmt: skip
    given = {"eval": write("eval.jsonl", texts(9, seed=1)), "fill": fill, "epochs": 3}
    one = run(texts(25), **EXACT, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache")
    if plan is not None:
        given["plan"] = tmp_path / "plan.json"
        given["plan"].write_text(json.dumps(plan.to_json()))
    found = over(texts(25), cluster(**FAR_APART), **given, cache__store="memory")
    assert_same(found, one, weights)
    if plan is None:
        filled = [device["samples_filled"] for device in found.metrics["devices"]]
        assert sum(filled) == 25 + 9
        assert 3 <= filled[1] <= 6
        assert filled[2] == 0


def test_entries_follow_to_new_owners(
    run: Any, over: Any, weights: Any, texts: Any, write: Any, tmp_path: Path, no_dropout: None
) -> None:
    """A run goes on with what others have stored where its devices have become slower, or faster."""
    given = {"eval": write("eval.jsonl", texts(9, seed=1)), "epochs": 2}
    one = run(texts(25), **EXACT, **given, output=tmp_path / "one", cache__dir=tmp_path / "cache")
    over(texts(25), cluster(a=1.0, b=9.0), **given, output=tmp_path / "before")
    found = over(texts(25), cluster(a=9.0, b=1.0), **given)
    assert_same(found, one, weights)
    assert [device["samples_filled"] for device in found.metrics["devices"]] == [0, 0]
    assert found.metrics["epochs"][0]["bytes_sent"] > 0


def test_a_resumed_run_shares_out_as_it_began(tmp_path: Path) -> None:
    note = tmp_path / "checkpoint" / SHARES_NAME
    began = noted_shares(note, cluster(a=5.0, b=1.0), resume=False)
    assert began == [1.0, 0.2]
    assert noted_shares(note, cluster(a=1.0, b=5.0), resume=True) == began
    assert noted_shares(note, cluster(b=1.0, a=5.0), resume=True) == began[::-1]
    assert noted_shares(note, cluster(a=4.0, c=1.0), resume=True) == [1.0, 0.25]  # another device
    assert noted_shares(note, cluster(c=1.0, a=2.0), resume=False) == [0.5, 1.0]
    for damaged in ('{"c": 1.0, "a"', '{"c": null, "a": 1.0}', '{"c": 0, "a": 1.0}', '{"c": NaN, "a": 1.0}', "[]"):
        note.write_text(damaged)
        assert noted_shares(note, cluster(c=1.0, a=5.0), resume=True) == [0.2, 1.0]
