"""The executor over real sockets."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pac_core.config import OptimizerConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.examples import Example, Segment
from pac_core.model import get_pac_model
from pac_core.runtime.optimizer import make_optimizer
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.stage import Stage, cut_model
from pac_core.testing.tiny import tiny_model
from pac_plugins.transports import make_local

PLAN = Plan(
    (
        StagePlan({ENCODER: (0, 1)}, ("a", "b"), (1, 2)),
        StagePlan({ENCODER: (1, 2), DECODER: (0, 1)}, ("c",), (3,)),
        StagePlan({DECODER: (1, 3)}, ("d", "e"), (2, 1)),
    ),
    4,
)


@pytest.mark.parametrize("send_ahead", [1, 256 << 20])
def test_three_steps_over_local_sockets_give_a_single_devices_weights(tmp_path: Path, send_ahead: int) -> None:
    """With next to no room for sends as well, where every send blocks until it is asked for."""
    rng = np.random.default_rng(0)
    batch = []
    for n in range(1, 12):
        source, answer = (rng.integers(4, 64, k).astype(np.int32) for k in (n, 1 + n % 4))
        segment = Segment(ENCODER, source)
        batch.append(Example((segment, Segment(DECODER, answer, None, segment)), answer.astype(np.int64)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_pac_model(tiny_model("t5", dtype=torch.float64), AdapterConfig(reduction=4, dropout=0.0)).train()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.calibrated.fill_(True)
    peers = [Peer(str(tmp_path / str(rank))) for rank in range(PLAN.size)]

    def device(rank: int) -> dict[str, Any]:
        number, _ = PLAN.place(rank)
        layers = PLAN.stages[number].layers
        mine = cut_model(copy.deepcopy(model), layers)
        optimizer = make_optimizer(mine, OptimizerConfig(lr=1e-2))
        with make_local(TransportOptions(rank, peers, send_ahead_bytes=send_ahead)) as transport:
            pipeline = Pipeline(PLAN, Stage(mine, layers), transport)
            for _ in range(3):
                pipeline.step(optimizer, len(batch), batch if number == 0 else ())
            transport.barrier()
        return mine.state_dict()

    with ThreadPoolExecutor(PLAN.size) as pool:
        found = list(pool.map(device, range(PLAN.size)))
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-2))
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        model.loss(batch, model.reader.read(batch)).backward()
        optimizer.step()
    expected = model.state_dict()
    assert {name for state in found for name in state} == set(expected)
    for state in found:
        assert_close(state, {name: expected[name] for name in state}, rtol=1e-9, atol=1e-9)
