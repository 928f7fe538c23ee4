"""After the first epoch: scales, entries and weights come to where the next epochs need them."""

import copy
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pac_core.batches import share_out
from pac_core.cache import ActivationCache, BoundCache
from pac_core.config import OptimizerConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.message import Message
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.examples import Example, Segment, Task
from pac_core.model import PacModel, get_pac_model
from pac_core.runtime import spread
from pac_core.runtime.fill import calibrate
from pac_core.runtime.optimizer import make_optimizer, moments, set_moments
from pac_core.runtime.parts import Part
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.scales import calibrate_stage, features_of
from pac_core.runtime.spread import Holding, spread_entries, spread_state
from pac_core.runtime.stage import Stage, bind_share, cut_model, stage_taps
from pac_core.testing.threads import Exchange, in_threads
from pac_core.testing.tiny import tiny_model

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
CONFIG = AdapterConfig(reduction=4, dropout=0.0, init="random")
OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.1)
LENGTHS = [3, 5, 2, 7, 4, 6, 1]

PLANS = {
    "bert": Plan(
        (StagePlan({ENCODER: (0, 1)}, ("a", "b"), (1, 2)), StagePlan({ENCODER: (1, 3)}, ("c", "d"), (2, 1))), 3
    ),
    "t5": Plan(
        (
            StagePlan({ENCODER: (0, 1)}, ("a",), (3,)),
            StagePlan({ENCODER: (1, 2), DECODER: (0, 1)}, ("b", "c"), (1, 2)),
            StagePlan({DECODER: (1, 3)}, ("d", "e"), (1, 2)),
        ),
        3,
    ),
}


def texts(family: str, labels: int = 3) -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for n in LENGTHS:
        ids = rng.integers(4, 64, n).astype(np.int32)
        source = Segment(ENCODER, ids, np.zeros(n, np.int8) if family == "bert" else None)
        if family == "bert":
            found.append(Example((source,), n % 3 if labels > 1 else n / 3))
        else:
            answer = rng.integers(4, 64, n + 1)
            found.append(Example((source, Segment(DECODER, answer.astype(np.int32), None, source)), answer))
    return found


def model_of(family: str, dtype: Any = "float64", labels: int = 3) -> PacModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cache = ActivationCache.open("memory", dtype=dtype)
        model = get_pac_model(tiny_model(family, dtype=torch.float64, labels=labels), CONFIG, cache=cache)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    if model.head is not None:
        model.head.dropout.p = 0.0
    return model.train()


class Device:
    """What one thread holds of a run over the plan of ``family``."""

    def __init__(self, transport: Transport, family: str, model: PacModel, dtype: Any = "float64") -> None:
        self.plan = PLANS[family]
        self.transport = transport
        self.number, _ = self.plan.place(transport.rank)
        layers = self.plan.stages[self.number].layers
        self.share = bind_share(ActivationCache.open("memory", dtype=dtype), model, layers)
        self.model = cut_model(copy.deepcopy(model), layers)
        self.pipeline = Pipeline(self.plan, Stage(self.model, layers, self.share), transport)
        taps = [stage_taps(model.side, stage.layers) for stage in self.plan.stages]
        whole = {s: model.reader.taps[s] for s in model.side.reads}
        self.whole = ActivationCache.open("memory", dtype=dtype).bind(model.info, whole)
        self.holding = Holding(self.share, self.whole, taps)

    def given(self, batch: Sequence[Example]) -> Sequence[Example]:
        return batch if self.number == 0 else ()


@pytest.mark.parametrize(("family", "labels"), [("bert", 3), ("bert", 1), ("t5", 3)])
def test_scales_are_those_of_a_single_device(family: str, labels: int) -> None:
    batch, model = texts(family, labels), model_of(family, labels=labels)
    expected = copy.deepcopy(model)
    calibrate(expected, share_out(batch, 1, 0, [1.0]))
    targets = torch.tensor([e.target for e in batch]) if labels == 1 else None

    def device(transport: Transport) -> Mapping[str, Tensor]:
        own = Device(transport, family, model)
        parts = own.pipeline.fill(len(batch), own.given(batch), partial(features_of, own.pipeline.stage.model))
        assert bool(parts) == own.pipeline.stage.is_last
        calibrate_stage(own.pipeline, parts, targets)
        return dict(own.model.named_buffers())

    wanted = dict(expected.named_buffers())
    assert_close(expected.calibrated, torch.tensor(True))
    found = in_threads(PLANS[family].size, device)
    assert {name for buffers in found for name in buffers} == set(wanted)
    for buffers in found:
        assert_close(buffers, {name: wanted[name] for name in buffers}, **CLOSE)
    assert any((wanted[name] != before).any() for name, before in model.named_buffers() if name != "calibrated")


def test_hidden_states_at_the_end_are_held_for_a_micro_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While only the backbone runs; of many long texts they would be most of what the last device has."""
    batch, model = texts("bert"), model_of("bert")
    real, seen, held = Stage.fill, list[Any](), list[int]()

    def noted(stage: Stage, part: Part) -> Part:
        if stage.is_last:
            held.append(sum(ref() is not None for ref in seen))
        found = real(stage, part)
        if stage.is_last:
            seen.append(weakref.ref(found.tensors["encoder.b"]))
        return found

    def device(transport: Transport) -> int:
        own = Device(transport, "bert", model)
        kept = own.pipeline.fill(len(batch), own.given(batch), lambda part: part.tensors["encoder.b"].mean(0))
        return len(kept)

    monkeypatch.setattr(Stage, "fill", noted)
    counts = in_threads(4, device)
    last = len(PLANS["bert"].stages[-1].devices)
    assert sum(counts) == len(seen) > 2 * last
    assert max(held) <= last


def test_scales_of_texts_read_apart_are_refused() -> None:
    task = Task("classification", ("a", "b"), pair=True, apart=True)
    model = get_pac_model(tiny_model("bert", dtype=torch.float64), CONFIG, task=task)
    with pytest.raises(BadInput, match="fill the cache first"):
        in_threads(4, lambda transport: calibrate_stage(Device(transport, "bert", model).pipeline, []))


def kept_by(owner: BoundCache, example: Example, model: PacModel) -> dict[str, Tensor]:
    """The whole entries of an example in the cache of its owner."""
    found = {}
    for stream in model.side.reads:
        segments = [s for s in example.segments if s.stream == stream]
        values, missing = owner.load(owner.keys(segments), [len(s) for s in segments])
        assert missing == []
        found[stream] = values
    return found


def tokens_of(message: Message) -> int:
    return sum(tensor.shape[1] for name, tensor in message.tensors.items() if name.endswith(".taps"))


@pytest.mark.parametrize("tokens", [8, 2048])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int8"])
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_every_owner_gets_the_whole_entries_of_its_samples(
    family: str, dtype: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "CHUNK_TOKENS", tokens)
    batch, model = texts(family), model_of(family, dtype)
    wanted = [model.reader.read([example]) for example in batch]
    owners = [(3 * i + i * i) % 3 + 1 for i in range(len(batch))]  # device 0 owns nothing
    exchange = Exchange()

    def device(transport: Transport) -> BoundCache:
        own = Device(transport, family, model, dtype)
        own.pipeline.fill(len(batch), own.given(batch))
        assert spread_entries(transport, own.plan, own.holding, batch, owners) == []
        return own.whole

    found = in_threads(PLANS[family].size, device, exchange)
    assert exchange.waiting() == []
    assert found[0].stats().entries == 0
    most = max(tokens, *map(len, batch))
    assert all(tokens_of(m) <= most for _, _, m in exchange.sent if m.tag.direction == "entries")
    for example, owner, taps in zip(batch, owners, wanted):
        for stream, values in kept_by(found[owner], example, model).items():
            assert_close(values, taps[stream].values, rtol=1e-6, atol=1e-6)


def test_a_sample_whose_entry_was_lost_is_reported_to_its_owner() -> None:
    batch, model = texts("bert"), model_of("bert")
    owners = [1] * 4 + [2] * 3

    def device(transport: Transport) -> list[int]:
        own = Device(transport, "bert", model)
        own.pipeline.fill(len(batch), own.given(batch))
        if own.number == 1:
            assert own.share is not None
            own.share._store.delete_many(own.share.keys([batch[5].segments[0]]))
        return spread_entries(transport, own.plan, own.holding, batch, owners)

    assert in_threads(4, device) == [[], [], [5], []]


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_training_goes_on_from_the_spread_weights_as_on_a_single_device(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps by pipeline, then two on the whole model."""
    monkeypatch.setattr(spread, "MESSAGE_TENSORS", 7)
    batch, model = texts(family), model_of(family)
    model.calibrated.fill_(True)
    expected = copy.deepcopy(model)
    steps(expected, make_optimizer(expected, OPTIMIZER), batch, 4)

    def device(transport: Transport) -> Mapping[str, Tensor]:
        own = Device(transport, family, model)
        optimizer = make_optimizer(own.model, OPTIMIZER)
        for _ in range(2):
            own.pipeline.step(optimizer, len(batch), own.given(batch))
        state = spread_state(transport, own.plan, own.model.state_dict())
        gathered = spread_state(transport, own.plan, moments(own.model, optimizer))
        whole = copy.deepcopy(model)
        whole.load_state_dict(state)
        whole_optimizer = make_optimizer(whole, OPTIMIZER)
        set_moments(whole, whole_optimizer, gathered)
        steps(whole, whole_optimizer, batch, 2)
        return whole.state_dict()

    for state in in_threads(PLANS[family].size, device):
        assert_close(dict(state), dict(expected.state_dict()), **CLOSE)


def steps(model: PacModel, optimizer: torch.optim.Optimizer, batch: Sequence[Example], count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad(set_to_none=False)
        model.loss(batch, model.reader.read(batch)).backward()
        optimizer.step()
