"""Whatever the plan, the gradients are those of a single device, and so are the weights after optimiser steps.

Devices are threads; the single device runs the whole batch through the whole model at once.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pac_core.config import OptimizerConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.examples import IGNORE, Example, Segment
from pac_core.model import PacModel, get_pac_model
from pac_core.runtime.optimizer import clip, make_optimizer, set_rates
from pac_core.runtime.pipeline import Pipeline, routes, share_of
from pac_core.runtime.stage import Stage, chain, check_cuts, cut_model
from pac_core.testing.threads import Exchange, in_threads
from pac_core.testing.tiny import tiny_model

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
DRAWN = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
KINDS = ["bert", "bert regression", "gpt2", "llama", "t5", "t5 bottleneck", "llama bottleneck", "llama every 2nd"]
OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.1)
STEPS = ((1.0, None), (0.5, 0.05), (0.25, None))
"""Part of the peak learning rate, and most that the gradient's norm may be, of each step."""


@cache
def backbone_model(family: str, labels: int) -> Any:
    """A tiny model, of four layers at least, so that there can be four stages."""
    model = tiny_model(family, dtype=torch.float64, labels=labels)
    if family == "t5":
        return model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 4
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        deep = type(model)(config).double().eval()
        for parameter in deep.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return deep


@cache
def whole(kind: str) -> PacModel:
    """The model on one device, every parameter and scale off its first value."""
    family, *more = kind.split(maxsplit=1)
    config = AdapterConfig(
        name="bottleneck" if more == ["bottleneck"] else "parallel",
        reduction=4,
        dropout=0.0,
        tap_every=2 if more == ["every 2nd"] else 1,
        init="random",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_pac_model(backbone_model(family, 1 if more == ["regression"] else 3), config)
        stir(model)
    if model.head is not None:
        model.head.dropout.p = 0.0
    return model.train()


def stir(model: PacModel) -> None:
    for name, tensor in model.state_dict().items():
        if name == "calibrated":
            tensor.fill_(True)
        elif name.endswith(("scale", "deviation")):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        else:
            tensor.add_(torch.randn_like(tensor) * 0.2)


def examples(kind: str, lengths: Sequence[int], seed: int) -> list[Example]:
    """Rows of these lengths; a causal row of one token predicts nothing."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> Any:
        return rng.integers(4, 64, n).astype(np.int32)

    found = []
    for n in lengths:
        if kind.startswith("bert"):
            target = float(rng.normal()) if "regression" in kind else n % 3
            found.append(Example((Segment(ENCODER, ids(n), np.zeros(n, np.int8)),), target))
        elif kind.startswith("t5"):
            source, m = Segment(ENCODER, ids(n)), 1 + (n * 5) % 4
            found.append(Example((source, Segment(DECODER, ids(m), None, source)), ids(m).astype(np.int64)))
        else:
            segment = Segment(DECODER, ids(n))
            found.append(Example((segment,), np.append(segment.input_ids[1:], IGNORE).astype(np.int64)))
    return found


@dataclass(frozen=True)
class Case:
    """A plan, and a batch for each of a few steps."""

    plan: Plan
    batches: list[list[Example]]


@st.composite
def cases(draw: Any, kind: str) -> Case:
    model = whole(kind)
    streams = chain(model.info, model.side.target)
    slots = [(s.name, i) for s in streams for i in range(s.layers)]
    allowed = [cut for cut in range(1, len(slots)) if cut_is_allowed(model, slots, cut)]
    cuts = sorted(draw(st.sets(st.sampled_from(allowed), max_size=min(3, len(allowed)))))
    sizes = [draw(st.integers(1, 3)) for _ in range(len(cuts) + 1)]
    rows = draw(st.integers(max(sizes), max(sizes) + 2))
    stages = []
    for number, (first, last, size) in enumerate(zip([0, *cuts], [*cuts, len(slots)], sizes)):
        marks = (
            sorted(draw(st.sets(st.integers(1, rows - 1), min_size=size - 1, max_size=size - 1))) if size > 1 else []
        )
        split = tuple(end - start for start, end in zip([0, *marks], [*marks, rows]))
        devices = tuple(f"{number}.{i}" for i in range(size))
        stages.append(StagePlan(slices_of(slots[first:last]), devices, split))
    micro = draw(st.integers(1, 8))
    plan = Plan(tuple(stages), micro, draw(st.sampled_from(["1f1b", "1f1b", "gpipe"])))
    batches = []
    for step in range(len(STEPS)):
        count = draw(st.integers((micro - 1) * rows + 1, micro * rows))
        lengths = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
        batches.append(examples(kind, [*lengths[:-1], 3], step))
    return Case(plan, batches)


def slices_of(slots: Sequence[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """Per stream the range of layers of these consecutive slots of the chain."""
    streams = dict.fromkeys(name for name, _ in slots)
    layers = {stream: [i for name, i in slots if name == stream] for stream in streams}
    return {stream: (held[0], held[-1] + 1) for stream, held in layers.items()}


def cut_is_allowed(model: PacModel, slots: Sequence[tuple[str, int]], cut: int) -> bool:
    try:
        check_cuts(model.side, slices_of(slots[cut:]))
    except BadInput:
        return False
    return True


def gradients(model: PacModel) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def weights(model: PacModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@dataclass(frozen=True)
class Outcome:
    """What one device, or a single one, ends with: losses and gradients of each step, and the weights."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def on_one_device(model: PacModel, batches: Sequence[list[Example]]) -> Outcome:
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model, OPTIMIZER)
    losses, found = [], []
    for (rate, max_norm), batch in zip(STEPS, batches):
        optimizer.zero_grad(set_to_none=False)
        loss = model.loss(batch, model.reader.read(batch))
        loss.backward()
        clip(optimizer, max_norm)
        losses.append(loss.item())
        found.append(gradients(model))
        set_rates(optimizer, rate)
        optimizer.step()
    return Outcome(losses, found, weights(model))


def on_many_devices(model: PacModel, case: Case, exchange: Exchange | None = None) -> list[Outcome]:
    def device(transport: Transport) -> Outcome:
        number, _ = case.plan.place(transport.rank)
        layers = case.plan.stages[number].layers
        mine = cut_model(copy.deepcopy(model), layers)
        pipeline = Pipeline(case.plan, Stage(mine, layers), transport)
        optimizer = make_optimizer(mine, OPTIMIZER) if list(mine.parameters()) else None
        losses, found = [], []
        for (rate, max_norm), batch in zip(STEPS, case.batches):
            given = batch if number == 0 else []
            losses.append(pipeline.step(optimizer, len(batch), given, rate=rate, max_norm=max_norm))
            found.append(gradients(mine))
        return Outcome(losses, found, weights(mine))

    return in_threads(case.plan.size, device, exchange)


def assert_same(plan: Plan, found: Sequence[Outcome], expected: Outcome) -> None:
    """Every device has its part of what one device has, and all parts are the whole."""
    assert {name for outcome in found for name in outcome.weights} == set(expected.weights)
    for outcome in found:
        assert_close(outcome.losses, expected.losses, **CLOSE)
        for step, wanted in zip(outcome.gradients, expected.gradients, strict=True):
            assert_close(step, {name: wanted[name] for name in step}, **CLOSE)
        assert_close(outcome.weights, {name: expected.weights[name] for name in outcome.weights}, **CLOSE)
    for number in range(len(plan.stages)):
        first, *others = (found[rank] for rank in plan.group(number))
        for other in others:
            assert all(torch.equal(other.weights[name], w) for name, w in first.weights.items())


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@DRAWN
def test_gradients_and_weights_are_those_of_a_single_device(kind: str, data: Any) -> None:
    case = data.draw(cases(kind))
    exchange = Exchange()
    found = on_many_devices(whole(kind), case, exchange)
    expected = on_one_device(whole(kind), case.batches)
    assert exchange.waiting() == []
    assert_same(case.plan, found, expected)
    assert max(g.abs().max() for g in expected.gradients[0].values()) > 1e-6


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
