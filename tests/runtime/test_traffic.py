"""What stages send each other, and how much a stage holds at once."""

import copy
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.message import Message
from pac_core.contracts.scheduler import Plan, ScheduleName, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import TransportError
from pac_core.examples import Example, Segment
from pac_core.model import PacModel, get_pac_model
from pac_core.runtime.parts import Part
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.stage import Passed, Stage, cut_model
from pac_core.testing.threads import Exchange, in_threads
from pac_core.wire import pack_message

D, R = 512, 64
"""Widths of backbone and side network."""

LENGTHS = [(67, 35), (80, 48), (44, 11), (64, 40), (56, 32)]
"""Tokens of each row's text and, for T5, of its answer."""

PLANS = {
    "bert": Plan(
        (
            StagePlan({ENCODER: (0, 1)}, ("a", "b"), (1, 2)),
            StagePlan({ENCODER: (1, 2)}, ("c",), (3,)),
            StagePlan({ENCODER: (2, 3)}, ("d", "e"), (2, 1)),
        ),
        2,
    ),
    "t5": Plan(
        (
            StagePlan({ENCODER: (0, 1)}, ("a",), (3,)),
            StagePlan({ENCODER: (1, 2)}, ("b", "c"), (2, 1)),
            StagePlan({DECODER: (0, 1)}, ("d",), (3,)),
            StagePlan({DECODER: (1, 2)}, ("e",), (3,)),
        ),
        2,
    ),
}


@cache
def wide(family: str) -> PacModel:
    """A model of realistic width, so that what is sent beside hidden states weighs what it does in earnest."""
    if family == "bert":
        config = hf.BertConfig(
            vocab_size=64, hidden_size=D, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8
        )
        base: Any = hf.BertForSequenceClassification(config)
    else:
        base = hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=64, d_model=D, d_ff=128, d_kv=64, num_heads=8, num_layers=2, decoder_start_token_id=0
            )
        )
    return get_pac_model(base, AdapterConfig(reduction=D // R, init="random"))


def rows(family: str) -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for source, answer in LENGTHS:
        ids = [rng.integers(4, 64, n).astype(np.int32) for n in (source, answer)]
        text = Segment(ENCODER, ids[0], np.zeros(source, np.int8) if family == "bert" else None)
        decoder = Segment(DECODER, ids[1], None, text)
        found.append(Example((text,), 1) if family == "bert" else Example((text, decoder), ids[1].astype(np.int64)))
    return found


def run(family: str, plan: Plan, exchange: Exchange, kind: type[Stage] = Stage) -> None:
    def device(transport: Transport) -> None:
        number, _ = plan.place(transport.rank)
        layers = plan.stages[number].layers
        stage = kind(cut_model(copy.deepcopy(wide(family)), layers), layers)
        batch = rows(family)
        Pipeline(plan, stage, transport).gradients(len(batch), batch if number == 0 else ())

    in_threads(plan.size, device, exchange)


def needed(family: str) -> dict[tuple[str, int], int]:
    """Bytes of b and a that must go forward over each boundary, and of a's gradient that must come back."""
    source, answer = (sum(lengths) * 4 for lengths in zip(*LENGTHS))
    inside, done = 2 * R, R  # channels of a side state between layers of `parallel`, and after the last
    if family == "bert":
        sizes = [(source * D, source * inside)] * 2
    else:
        sizes = [
            (source * D, source * inside),
            (source * D, source * done),
            (source * D + answer * D, source * done + answer * inside),
        ]
    forward = {("forward", i + 1): b + a for i, (b, a) in enumerate(sizes)}
    return forward | {("backward", i): a for i, (_, a) in enumerate(sizes)}


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_next_to_nothing_is_sent_but_b_and_a_forward_and_the_gradient_of_a_back(family: str) -> None:
    exchange = Exchange()
    run(family, PLANS[family], exchange)
    sent = Counter[tuple[str, int]]()
    for _, _, message in exchange.sent:
        if not message.tag.direction.startswith("@"):
            sent[message.tag.direction, message.tag.stage] += message.nbytes()
    least = needed(family)
    assert sent.keys() == least.keys()
    for line, size in least.items():
        assert size <= sent[line] <= 1.01 * size, line
    assert all(sent[line] == size for line, size in least.items() if line[0] == "backward")
    between = [message for _, _, message in exchange.sent if not message.tag.direction.startswith("@")]
    assert sum(map(on_the_wire, between)) <= 1.01 * sum(least.values())


def on_the_wire(message: Message) -> int:
    """Bytes of all frames of a message, heads included."""
    pieces = pack_message(message, 1 << 30).pieces(1)
    return sum(memoryview(frame).nbytes for piece in pieces for frame in piece)


def events(plan: Plan) -> list[list[str]]:
    """What each device does while a batch of five rows goes through, in order: receives that it posts, parts that it
    runs forward and backward."""
    found: list[list[str]] = [[] for _ in range(plan.size)]

    class Noted(Exchange):
        def receive(self, line: Any, work: Any) -> None:
            if not line[2].direction.startswith("@"):
                found[line[1]].append(f"post {line[2].direction[0].upper()}{line[2].micro_batch}")
            super().receive(line, work)

    class NotedStage(Stage):
        @property
        def notes(self) -> list[str]:
            return found[[dict(stage.layers) for stage in plan.stages].index(dict(self.layers))]

        def forward(self, part: Part) -> tuple[Part, Passed]:
            self.notes.append("forward")
            return super().forward(part)

        def backward(self, passed: Passed, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
            self.notes.append("backward")
            return super().backward(passed, gradients)

    run("bert", plan, Noted(), NotedStage)
    return found


def in_line(schedule: ScheduleName) -> Plan:
    """Three stages of one device, five micro-batches of one row."""
    return Plan(tuple(StagePlan({ENCODER: (i, i + 1)}, (str(i),), (1,)) for i in range(3)), 5, schedule)


@pytest.mark.parametrize(("schedule", "held"), [("1f1b", [3, 2, 1]), ("gpipe", [5, 5, 5])])
def test_a_stage_holds_no_more_micro_batches_than_its_schedule_says(schedule: ScheduleName, held: list[int]) -> None:
    balance = {"forward": 1, "backward": -1}
    for done, most in zip(events(in_line(schedule)), held):
        assert max(accumulate(balance.get(event, 0) for event in done)) == most


def test_the_next_message_is_asked_for_before_the_stage_computes_and_no_other() -> None:
    """Later would leave the wires idle while it computes; earlier, a fast stage would fill the memory of a slow one."""
    *_, last = events(in_line("1f1b"))
    ahead = [f"post F{micro}" for micro in range(2, 5)]
    turns = [[*ahead[i : i + 1], "forward", "backward"] for i in range(-1, 4)]
    turns[0] = ["post F0", "post F1", "forward", "backward"]
    assert last == [event for turn in turns for event in turn]


def test_a_device_that_fails_ends_the_step_on_all_others() -> None:
    class Broken(Stage):
        def forward(self, part: Part) -> tuple[Part, Passed]:
            if self.is_last:
                raise MemoryError("no room")
            return super().forward(part)

    failed: list[type] = []

    class Watched(Exchange):
        def stop(self, error: Any) -> None:
            failed.append(type(error))
            super().stop(error)

    with pytest.raises(MemoryError, match="no room"):
        run("bert", PLANS["bert"], Watched(), Broken)
    assert failed == [TransportError] * 5
    assert torch.is_grad_enabled()
