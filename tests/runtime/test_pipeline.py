"""Whatever the plan, the gradients are those of a single device, and so are the weights after optimiser steps.

Devices are threads; the single device runs the whole batch through the whole model at once.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.runtime.routes import routes, share_of
from pac_core.testing.stages import KINDS, Case, Outcome, assert_same, cases, on_a_device, on_one_device
from pac_core.testing.threads import Exchange, in_threads
from pac_plugins.transports import make_local

PLANS = int(os.environ.get("PAC_RANDOM_PLANS", "4"))
"""Of each kind and each way of connecting the devices."""

DRAWN = settings(max_examples=PLANS, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@DRAWN
def test_gradients_and_weights_are_those_of_a_single_device(kind: str, data: Any) -> None:
    case = data.draw(cases(kind))
    exchange = Exchange()
    found = in_threads(case.plan.size, lambda transport: on_a_device(case, transport), exchange)
    assert exchange.waiting() == []
    assert_same(case, found, on_one_device(case))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), send_ahead=st.sampled_from([256 << 20, 1]))
@DRAWN
def test_so_they_are_over_local_sockets(kind: str, data: Any, send_ahead: int) -> None:
    """With next to no room for sends as well, where every send blocks until it is asked for."""
    case = data.draw(cases(kind, stages=4, group=3, micro_batches=6))
    with TemporaryDirectory() as folder:
        found = over_local(case, Path(folder), send_ahead)
    assert_same(case, found, on_one_device(case))


def over_local(case: Case, folder: Path, send_ahead: int) -> list[Outcome]:
    peers = [Peer(str(folder / str(rank))) for rank in range(case.plan.size)]

    def device(rank: int) -> Outcome:
        with make_local(TransportOptions(rank, peers, send_ahead_bytes=send_ahead)) as transport:
            outcome = on_a_device(case, transport)
            transport.barrier()
            return outcome

    with ThreadPoolExecutor(case.plan.size) as pool:
        return list(pool.map(device, range(case.plan.size)))


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=2, max_size=2), st.integers(0, 12))
def test_routes_carry_every_row_once_and_agree_on_both_ends(weights: list[list[int]], rows: int) -> None:
    size = sum(weights[0]) * sum(weights[1])
    splits = [[w * size // sum(group) for w in group] for group in weights]
    stages = tuple(
        StagePlan({ENCODER: (i, i + 1)}, tuple(f"{i}.{j}" for j in range(len(split))), tuple(split))
        for i, split in enumerate(splits)
    )
    plan = Plan(stages, 1)

    def global_rows(rank: int, stage: int) -> set[tuple[int, int, int]]:
        start = share_of(plan, rank, rows)[0]
        return {
            (min(rank, r.rank), max(rank, r.rank), start + i)
            for r in routes(plan, rank, stage, rows)
            for i in range(r.first, r.last)
        }

    sent = [global_rows(rank, 1) for rank in plan.group(0)]
    received = [global_rows(rank, 0) for rank in plan.group(1)]
    assert set().union(*sent) == set().union(*received)
    assert sorted(row for lines in sent for _, _, row in lines) == list(range(rows))
    assert routes(plan, 0, -1, rows) == routes(plan, plan.size - 1, 2, rows) == ()
