"""A stage: its share of the cache, slices loaded from a checkpoint, pairs of texts, and what is refused."""

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pac_core.backbones import load_backbone
from pac_core.cache import ActivationCache, BoundCache
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER, BackboneSource
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.examples import Example, Segment, Task
from pac_core.model import PacModel, get_pac_model
from pac_core.registry import Registry
from pac_core.runtime.parts import STATISTICS
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.stage import Stage, bind_share, cut_model, stage_taps
from pac_core.taps import of_stream
from pac_core.tasks import target_stream
from pac_core.testing.threads import in_threads
from pac_core.testing.tiny import save_tiny, tiny_model

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
CONFIG = AdapterConfig(reduction=4, dropout=0.0, init="random")
Gradients = dict[str, Tensor]

BERT = Plan(
    (
        StagePlan({ENCODER: (0, 1)}, ("a", "b"), (1, 2)),
        StagePlan({ENCODER: (1, 3)}, ("c", "d"), (2, 1)),
    ),
    2,
)
T5 = Plan(
    (
        StagePlan({ENCODER: (0, 1)}, ("a",), (3,)),
        StagePlan({ENCODER: (1, 2), DECODER: (0, 1)}, ("b", "c"), (1, 2)),
        StagePlan({DECODER: (1, 3)}, ("d",), (3,)),
    ),
    2,
)
PLANS = {"bert": BERT, "t5": T5}


def texts(lengths: Sequence[int], family: str = "bert") -> list[Example]:
    rng = np.random.default_rng(0)

    def ids(n: int) -> Any:
        return rng.integers(4, 64, n).astype(np.int32)

    if family == "bert":
        return [Example((Segment(ENCODER, ids(n), np.zeros(n, np.int8)),), n % 3) for n in lengths]
    found = []
    for n in lengths:
        source = Segment(ENCODER, ids(n))
        found.append(Example((source, Segment(DECODER, ids(n + 1), None, source)), ids(n + 1).astype(np.int64)))
    return found


def stirred(model: PacModel) -> PacModel:
    """Every parameter and scale off its first value, and no dropout."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name == "calibrated":
            tensor.fill_(True)
        elif name.endswith(("scale", "deviation")):
            tensor.copy_(noise.abs() + 0.5)
        else:
            tensor.add_(noise * 0.2)
    if model.head is not None:
        model.head.dropout.p = 0.0
    return model.train()


def gradients(model: PacModel) -> Gradients:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def on_one_device(model: PacModel, batch: Sequence[Example]) -> Gradients:
    model.zero_grad()
    model.loss(batch, model.reader.read(batch)).backward()
    return gradients(model)


def on_many_devices(
    plan: Plan,
    batch: Sequence[Example],
    stage: Callable[[Transport, Mapping[str, tuple[int, int]]], Stage],
    tensors: Mapping[str, Tensor] | None = None,
) -> list[Gradients]:
    def device(transport: Transport) -> Gradients:
        number, _ = plan.place(transport.rank)
        made = stage(transport, plan.stages[number].layers)
        first = number == 0
        Pipeline(plan, made, transport).gradients(len(batch), batch if first else (), tensors if first else None)
        return gradients(made.model)

    return in_threads(plan.size, device)


def assert_parts_of(whole: Gradients, found: Sequence[Gradients]) -> None:
    assert {name for part in found for name in part} == set(whole)
    for part in found:
        assert_close(part, {name: whole[name] for name in part}, **CLOSE)
    assert max(g.abs().max() for g in whole.values()) > 1e-6


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float64"])
def test_stages_learn_from_rounded_taps_and_their_shares_add_up_to_the_whole_cache(family: str, dtype: Any) -> None:
    base, plan, batch = tiny_model(family, dtype=torch.float64), PLANS[family], texts([3, 5, 2, 7, 4], family)
    cache = ActivationCache.open("memory", dtype=dtype)
    model = stirred(get_pac_model(base, CONFIG, cache=cache))
    expected = on_one_device(model, batch)
    shares: dict[int, BoundCache | None] = {}

    def stage(transport: Transport, layers: Mapping[str, tuple[int, int]]) -> Stage:
        mine = copy.deepcopy(model)
        shares[transport.rank] = bind_share(ActivationCache.open("memory", dtype=dtype), mine, layers)
        return Stage(cut_model(mine, layers), layers, shares[transport.rank])

    assert_parts_of(expected, on_many_devices(plan, batch, stage))
    for stream in model.side.reads:
        for segment in (s for example in batch for s in of_stream(example, stream)):
            held = [
                taps for number in range(len(plan.stages)) for taps in held_by(plan, number, shares, segment, model)
            ]
            assert model.reader.cache is not None
            whole, missing = model.reader.cache.load(model.reader.cache.keys([segment]), [len(segment)])
            assert missing == []
            assert_close(torch.cat(held), whole, **CLOSE)


def held_by(
    plan: Plan, number: int, shares: Mapping[int, BoundCache | None], segment: Segment, model: PacModel
) -> list[Tensor]:
    """The taps of ``segment`` that the one device of a stage holds which ran it; none if the stage has none."""
    if segment.stream not in stage_taps(model.side, plan.stages[number].layers):
        return []
    found = []
    for rank in plan.group(number):
        share = shares[rank]
        assert share is not None
        if share.contains(share.keys([segment])) == [True]:
            found.append(share.load(share.keys([segment]), [len(segment)])[0])
    assert len(found) == 1
    return found


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_stage_loaded_from_its_part_of_a_checkpoint_learns_the_same(family: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / family, family, dtype=torch.float64)
    plan, batch, registry = PLANS[family], texts([3, 5, 2, 4], family), Registry()
    model = stirred(get_pac_model(str(path), CONFIG, task=task_of(family)))
    state, lock = model.state_dict(), threading.Lock()

    def stage(transport: Transport, layers: Mapping[str, tuple[int, int]]) -> Stage:
        with lock:  # transformers changes torch's default dtype while it builds a model, for all threads
            backbone = load_backbone(BackboneSource(path=path, layers=dict(layers)), registry)
        side = registry.get("adapters", "parallel")(backbone, CONFIG, target_stream(backbone.info, task_of(family)))
        mine = cut_model(PacModel(backbone, side, task_of(family)), layers).train()
        mine.load_state_dict({name: state[name] for name in mine.state_dict()})
        if mine.head is not None:
            mine.head.dropout.p = 0.0
        return Stage(mine, layers)

    assert_parts_of(on_one_device(model, batch), on_many_devices(plan, batch, stage))


def task_of(family: str) -> Task:
    return Task("seq2seq") if family == "t5" else Task("classification", ("a", "b", "c"))


def test_two_texts_read_apart_are_matched_by_what_is_known_of_them_beforehand() -> None:
    rng = np.random.default_rng(0)
    batch = []
    for n, m in [(3, 4), (5, 2), (2, 2), (4, 6), (1, 3)]:
        ids = [rng.integers(4, 64, k).astype(np.int32) for k in (n, m)]
        batch.append(Example(tuple(Segment(ENCODER, i, np.zeros(len(i), np.int8)) for i in ids), n % 2))
    task = Task("classification", ("a", "b"), pair=True, apart=True)
    model = stirred(get_pac_model(tiny_model("bert", dtype=torch.float64), CONFIG, task=task))
    expected = on_one_device(model, batch)
    assert model.matcher is not None
    matches = model.matcher(model.reader.read(batch)[ENCODER])
    known = {f"{ENCODER}.match": model.matcher.scaled(matches.tokens).t(), STATISTICS: matches.statistics}

    def stage(transport: Transport, layers: Mapping[str, tuple[int, int]]) -> Stage:
        return Stage(cut_model(copy.deepcopy(model), layers), layers)

    assert_parts_of(expected, on_many_devices(BERT, batch, stage, known))
    with pytest.raises(BadInput, match="fill the cache first"):
        on_many_devices(BERT, batch, stage)


def test_a_stage_that_begins_before_the_first_tap_is_refused() -> None:
    config = AdapterConfig(reduction=4, init="random", tap_every=2)
    model = get_pac_model(tiny_model("llama"), config)
    with pytest.raises(
        BadInput, match=r"begins at layer 1 of stream 'decoder', before the first tap; begin .* layer 2"
    ):
        cut_model(model, {DECODER: (1, 3)})


def test_a_plan_of_another_size_or_model_is_refused() -> None:
    model = get_pac_model(tiny_model("bert"), CONFIG)
    layers = {ENCODER: (0, 3)}
    stage = Stage(model, layers)

    def devices(count: int, last: int) -> Callable[[Transport], Pipeline]:
        names = tuple(map(str, range(count)))
        return lambda transport: Pipeline(
            Plan((StagePlan({ENCODER: (0, last)}, names, (1,) * count),), 1), stage, transport
        )

    with pytest.raises(BadInput, match="the plan is for 2 devices, but 1 are connected"):
        in_threads(1, devices(2, 3))
    with pytest.raises(BadInput, match="once and in order"):
        in_threads(1, devices(1, 4))
