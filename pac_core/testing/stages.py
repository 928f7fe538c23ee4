"""Training by any plan equals training on one device: random plans, and what both end with. Needs hypothesis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pac_core.cache import ActivationCache
from pac_core.config import OptimizerConfig, RunConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.examples import IGNORE, Example, Segment, Task
from pac_core.model import PacModel, get_pac_model
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.optimizer import clip, make_optimizer, moments, set_moments, set_rates
from pac_core.runtime.parts import STATISTICS
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.ranks import RankedPlan, ranked
from pac_core.runtime.spread import Holding, spread_entries, spread_state
from pac_core.runtime.stage import Stage, bind_share, chain, check_cuts, cut_model, stage_taps
from pac_core.runtime.team import ALONE, Replicas, Team
from pac_core.runtime.train import Trainer, optimizer_step
from pac_core.taps import TapReader
from pac_core.testing.tiny import tiny_model

KINDS = (
    "bert",
    "bert regression",
    "bert apart",
    "gpt2",
    "llama",
    "llama bottleneck",
    "llama every 2nd",
    "t5",
    "t5 bottleneck",
    "bart",
)
"""Families, with what is unusual about the task or the side network."""

OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.1)
STEPS = ((1.0, None), (0.5, 0.05), (0.25, None))
"""Part of the peak learning rate, and most that the gradient's norm may be, of each step by stages."""

OpenCache = Callable[[str], ActivationCache]
"""Opens a device's cache of whole entries (``"whole"``) or of its stage's (``"share"``), in float64."""


@dataclass(frozen=True)
class Case:
    """A plan, and a batch for each of `STEPS`."""

    kind: str
    plan: RankedPlan
    batches: list[list[Example]] = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """What a device ends with: loss and gradients of each step, and the weights after the last."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


@st.composite
def cases(draw: Any, kind: str, *, stages: int = 6, group: int = 4, micro_batches: int = 16) -> Case:
    """Plans of at most so many stages, devices in a group and micro-batches, split unevenly, their devices ranked in
    any order, with batches for them."""
    model = whole_model(kind)
    slots = [(s.name, i) for s in chain(model.info, model.side.target) for i in range(s.layers)]
    allowed = [cut for cut in range(1, len(slots)) if _cut_is_allowed(model, slots[cut:])]
    cuts = sorted(draw(st.sets(st.sampled_from(allowed), max_size=min(stages - 1, len(allowed)))))
    sizes = [draw(st.integers(1, group)) for _ in range(len(cuts) + 1)]
    rows = draw(st.integers(max(sizes), max(sizes) + 2))
    planned = []
    for number, (start, end) in enumerate(pairwise([0, *cuts, len(slots)])):
        marks = sorted(draw(st.permutations(range(1, rows)))[: sizes[number] - 1])
        split = tuple(last - first for first, last in pairwise([0, *marks, rows]))
        devices = tuple(f"{number}.{i}" for i in range(sizes[number]))
        planned.append(StagePlan(_slices(slots[start:end]), devices, split))
    micro = draw(st.integers(1, micro_batches))
    schedule = draw(st.sampled_from(["1f1b", "1f1b", "gpipe"]))
    limit = draw(st.none() | st.integers(1, 3)) if schedule == "1f1b" else None
    plan = Plan(tuple(planned), micro, schedule, in_flight=limit)
    batches = []
    for step in range(len(STEPS)):
        count = draw(st.integers((micro - 1) * rows + 1, micro * rows))
        lengths = np.random.default_rng(draw(st.integers(0, 2**16))).integers(1, 7, count - 1)
        batches.append(texts(kind, [*lengths.tolist(), 3], step))
    return Case(kind, ranked(plan, draw(st.permutations(plan.devices))), batches)


def _slices(slots: Sequence[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """Per stream the range of layers of these consecutive slots of the chain."""
    layers = {stream: [i for name, i in slots if name == stream] for stream in dict.fromkeys(name for name, _ in slots)}
    return {stream: (held[0], held[-1] + 1) for stream, held in layers.items()}


def _cut_is_allowed(model: PacModel, slots: Sequence[tuple[str, int]]) -> bool:
    try:
        check_cuts(model.side, _slices(slots))
    except BadInput:
        return False
    return True


@cache
def whole_model(kind: str) -> PacModel:
    """The model on one device, in float64 and without dropout, every parameter and scale off its first value; six
    layers long, so that there can be six stages."""
    family, *more = kind.split(maxsplit=1)
    config = AdapterConfig(
        name="bottleneck" if more == ["bottleneck"] else "parallel",
        reduction=4,
        dropout=0.0,
        tap_every=2 if more == ["every 2nd"] else 1,
        init="random",
    )
    base = tiny_model(
        family,
        dtype=torch.float64,
        labels=1 if more == ["regression"] else 3,
        layers=3 if family in ("t5", "bart") else 6,
    )
    task = Task("classification", ("a", "b", "c"), pair=True, apart=True) if more == ["apart"] else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_pac_model(base, config, task=task)
        for name, tensor in model.state_dict().items():
            if name == "calibrated":
                tensor.fill_(True)
            elif name.endswith(("scale", "deviation")):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            else:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return model.train()


def texts(kind: str, lengths: Sequence[int], seed: int) -> list[Example]:
    """Rows of these lengths; a causal row of one token predicts nothing."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> Any:
        return rng.integers(4, 64, n).astype(np.int32)

    found = []
    for n in lengths:
        if kind == "bert apart":
            pair = tuple(Segment(ENCODER, ids(k), np.zeros(k, np.int8)) for k in (n, 1 + n % 3))
            found.append(Example(pair, n % 3))
        elif kind.startswith("bert"):
            target = float(rng.normal()) if "regression" in kind else n % 3
            found.append(Example((Segment(ENCODER, ids(n), np.zeros(n, np.int8)),), target))
        elif kind.startswith(("t5", "bart")):
            source, m = Segment(ENCODER, ids(n)), 1 + (n * 5) % 4
            found.append(Example((source, Segment(DECODER, ids(m), None, source)), ids(m).astype(np.int64)))
        else:
            segment = Segment(DECODER, ids(n))
            found.append(Example((segment,), np.append(segment.input_ids[1:], IGNORE).astype(np.int64)))
    return found


def known_beforehand(model: PacModel, batch: Sequence[Example]) -> dict[str, Tensor] | None:
    """What `Pipeline.gradients` must be given of texts read apart."""
    if model.matcher is None:
        return None
    stream = model.side.target
    matches = model.matcher(model.reader.read(batch)[stream])
    return {f"{stream}.match": model.matcher.scaled(matches.tokens).t(), STATISTICS: matches.statistics}


def on_one_device(case: Case, *, cached: bool = False) -> Outcome:
    """`STEPS`, each over a whole batch at once; with ``cached`` the same batches again, as later epochs train."""
    model = copy.deepcopy(whole_model(case.kind))
    optimizer = make_optimizer(model, OPTIMIZER)
    losses, found = [], []
    for (rate, max_norm), batch in zip(STEPS, case.batches):
        optimizer.zero_grad(set_to_none=False)
        loss = model.loss(batch, model.reader.read(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        clip(optimizer, max_norm)
        losses.append(loss.item())
        found.append(_gradients(model))
        set_rates(optimizer, rate)
        optimizer.step()
    if cached:
        owners = [0] * sum(map(len, case.batches))
        losses += _cached_steps(model, optimizer, case, owners, ALONE)
    return Outcome(losses, found, _weights(model))


def on_a_device(
    case: Case, transport: Transport, open_cache: OpenCache | None = None, kind: type[Stage] = Stage
) -> Outcome:
    """The same on one device of the plan, the first `STEPS` by stages. With ``open_cache`` its taps go to a share of
    the cache; after these steps every device gets the whole model and its own whole entries, and trains data parallel.
    """
    model, plan = whole_model(case.kind), case.plan
    number, _ = plan.place(transport.rank)
    layers = plan.stages[number].layers
    share = None if open_cache is None else bind_share(open_cache("share"), model, layers)
    mine = cut_model(copy.deepcopy(model), layers)
    pipeline = Pipeline(plan, kind(mine, layers, share), transport)
    optimizer = make_optimizer(mine, OPTIMIZER) if list(mine.parameters()) else None
    losses, found = [], []
    for (rate, max_norm), batch in zip(STEPS, case.batches):
        given = (batch, known_beforehand(model, batch)) if number == 0 else ((), None)
        losses.append(pipeline.step(optimizer, len(batch), given[0], rate=rate, max_norm=max_norm, tensors=given[1]))
        found.append(_gradients(mine))
    if open_cache is None:
        return Outcome(losses, found, _weights(mine))
    taps = [stage_taps(model.side, stage.layers) for stage in plan.stages]
    holding = Holding(share, open_cache("whole").bind(model.info, model.reader.taps), taps)
    examples = [example for batch in case.batches for example in batch]
    owners = [(5 * i + i // 3) % plan.size for i in range(len(examples))]
    assert spread_entries(transport, plan, holding, examples, owners) == []
    united = copy.deepcopy(model)
    united.load_state_dict(spread_state(transport, plan, mine.state_dict()))
    united.reader = TapReader(model.backbone, holding.whole, model.reader.taps)
    united_optimizer = make_optimizer(united, OPTIMIZER)
    gathered = {} if optimizer is None else moments(mine, optimizer)
    set_moments(united, united_optimizer, spread_state(transport, plan, gathered))
    losses += _cached_steps(united, united_optimizer, case, owners, Replicas(transport, [1.0] * transport.size))
    assert united.reader.counters.backbone_samples == 0
    return Outcome(losses, found, _weights(united))


def _cached_steps(
    model: PacModel, optimizer: torch.optim.Optimizer, case: Case, owners: Sequence[int], team: Team
) -> Iterator[float]:
    """Losses of a step over each batch, a device working on the samples that it owns."""
    config = RunConfig.build({}, {"model": "tiny", "train": "drawn"})
    data = team.share_out([example for batch in case.batches for example in batch], config.batch_size, 0)
    trainer = Trainer(
        config, model, optimizer, data, 1, Path(), {}, StopFlag(), lambda progress, done, loss: None, team
    )
    start = 0
    for batch in case.batches:
        own = [example for i, example in enumerate(batch, start) if owners[i] == team.rank]
        start += len(batch)
        yield optimizer_step(trainer, batch, iter([(own, model.reader.read(own))] if own else []), 1.0)


def assert_same(case: Case, found: Sequence[Outcome], expected: Outcome) -> None:
    """Every device has its part of what one device has, all parts are the whole, and groups agree to the bit."""
    assert {name for outcome in found for name in outcome.weights} == set(expected.weights)
    assert max(float(g.abs().max()) for g in expected.gradients[0].values()) > 1e-6
    for outcome in found:
        _assert_close(outcome.losses, expected.losses)
        for step, wanted in zip(outcome.gradients, expected.gradients, strict=True):
            _assert_close(step, {name: wanted[name] for name in step})
        _assert_close(outcome.weights, {name: expected.weights[name] for name in outcome.weights})
    for number in range(len(case.plan.stages)):
        first, *others = (found[rank] for rank in case.plan.group(number))
        for other in others:
            assert all(torch.equal(other.weights[name], weight) for name, weight in first.weights.items())


def _assert_close(found: object, expected: object) -> None:
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


def _gradients(model: PacModel) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def _weights(model: PacModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
