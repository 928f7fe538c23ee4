"""Whatever the plan, the gradients are those of a single device, and so are the weights after optimiser steps.

Devices are threads; the single device runs the whole batch through the whole model at once.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import get_ident
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.runtime.parts import Part
from pac_core.runtime.routes import routes, share_of
from pac_core.runtime.stage import Passed, Stage
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


class CountedStage(Stage):
    """Counts what has gone forward and not yet backward."""

    counts: ClassVar[dict[int, list[int]]]  # by device's thread, since its beginning

    def forward(self, part: Part) -> tuple[Part, Passed]:
        self._note(1)
        return super().forward(part)

    def backward(self, passed: Passed, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._note(-1)
        return super().backward(passed, gradients)

    def _note(self, change: int) -> None:
        held = self.counts.setdefault(get_ident(), [0])
        held.append(held[-1] + change)


@pytest.mark.parametrize("kind", ["bert", "bart"])
@given(data=st.data())
@DRAWN
def test_no_stage_ever_holds_more_micro_batches_than_its_schedule_says(kind: str, data: Any) -> None:
    case = data.draw(cases(kind))
    stages, micro = len(case.plan.stages), case.plan.micro_batches

    class Counted(CountedStage):
        counts: ClassVar = {}

    def device(transport: Transport) -> tuple[int, int]:
        on_a_device(case, transport, kind=Counted)
        return case.plan.place(transport.rank)[0], max(Counted.counts.get(get_ident(), [0]))

    for number, most in in_threads(case.plan.size, device):
        assert most <= (min(stages - number, micro) if case.plan.schedule == "1f1b" else micro)


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
