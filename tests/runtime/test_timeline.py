"""What devices did during a mini-batch, on one clock."""

import copy
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from torch import Tensor

from pac_core.config import OptimizerConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.model import get_pac_model
from pac_core.runtime.optimizer import make_optimizer
from pac_core.runtime.parts import Part
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.stage import Passed, Stage, cut_model
from pac_core.runtime.timeline import gather_spans
from pac_core.spans import Span
from pac_core.testing.stages import texts
from pac_core.testing.threads import ThreadTransport, in_threads
from pac_core.testing.tiny import tiny_model

MICRO = 6
COMPUTE, DELIVERY = 0.06, 0.06
"""Seconds that a pass through a stage takes, and seconds that a message is under way."""

PLAN = Plan(tuple(StagePlan({ENCODER: (i, i + 1)}, (f"device {i}",), (1,)) for i in range(3)), MICRO)
TWO = Plan((StagePlan({ENCODER: (0, 1)}, ("a",), (1,)), StagePlan({ENCODER: (1, 3)}, ("b",), (1,))), MICRO, "gpipe")


class SlowStage(Stage):
    """Takes `COMPUTE` for a pass, without using a core."""

    def forward(self, part: Part) -> tuple[Part, Passed]:
        time.sleep(COMPUTE)
        return super().forward(part)

    def backward(self, passed: Passed, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(COMPUTE)
        return super().backward(passed, gradients)


class LateWork(Work[Message]):
    """A receive whose message arrives `DELIVERY` after it met its receive, as over a slow link."""

    def finish(self, value: Message) -> None:
        self.ready = time.monotonic() + DELIVERY
        super().finish(value)

    def wait(self, timeout: float | None = None) -> Message:
        message = super().wait(timeout)
        time.sleep(max(0.0, self.ready - time.monotonic()))
        return message


class LazyWork(LateWork):
    """A receive that is posted once somebody waits for it."""

    post: Callable[[], None]

    def wait(self, timeout: float | None = None) -> Message:
        self.post()
        return super().wait(timeout)


class SlowTransport(Transport):
    """Another one whose messages between stages take `DELIVERY`, counted from when they met their receive."""

    lazy = False

    def __init__(self, inner: ThreadTransport) -> None:
        self.inner, self.timeout = inner, inner.timeout

    rank = property(lambda self: self.inner.rank)
    size = property(lambda self: self.inner.size)

    def isend(self, to: int, message: Message, *, timeout: float | None = None) -> Work[None]:
        return self.inner.isend(to, message, timeout=timeout)

    def irecv(self, source: int, tag: Tag) -> Work[Message]:
        if tag.direction not in ("forward", "backward"):
            return self.inner.irecv(source, tag)
        line = (source, self.rank, tag)
        work = (LazyWork if self.lazy else LateWork)(f"receive {tag} from device {source}", self.timeout)
        if isinstance(work, LazyWork):
            work.post = lambda: self.inner.exchange.receive(line, work)
        else:
            self.inner.exchange.receive(line, work)
        return work

    def lost(self) -> Mapping[int, str]:
        return {}

    def close(self) -> None:
        pass


def run(kind: type[Stage], plan: Plan, wrap: Any = lambda transport: transport) -> list[Any]:
    """A recorded step; by device the seconds that it took, its own spans, and those that were gathered."""
    model = get_pac_model(tiny_model("bert"), AdapterConfig(reduction=4, init="random"))
    batch = texts("bert", [3] * MICRO, 0)

    def device(transport: Transport) -> tuple[float, list[Span], list[Span]]:
        transport = wrap(transport)
        number, _ = plan.place(transport.rank)
        layers = plan.stages[number].layers
        own = cut_model(copy.deepcopy(model), layers).train()
        pipeline, optimizer = Pipeline(plan, kind(own, layers), transport), make_optimizer(own, OptimizerConfig())
        given = batch if number == 0 else ()
        pipeline.step(optimizer, MICRO, given)
        transport.barrier()
        began = time.perf_counter()
        with pipeline.recorded() as spans:
            pipeline.step(optimizer, MICRO, given)
        seconds = time.perf_counter() - began
        pipeline.step(optimizer, MICRO, given)  # is not recorded
        skew = 1000.0 * transport.rank
        moved = [Span(s.device, s.kind, s.micro_batch, s.start_s + skew, s.end_s + skew) for s in spans]
        return seconds, spans, gather_spans(transport, plan, moved, clock=lambda: time.perf_counter() + skew)

    return in_threads(plan.size, device)


def test_spans_tell_what_each_device_did_in_order() -> None:
    found = run(Stage, PLAN)
    for number, (seconds, spans, _) in enumerate(found):
        assert {span.device for span in spans} == {f"device {number}"}
        assert all(first.end_s <= then.start_s for first, then in pairwise(spans))
        assert sum(span.seconds for span in spans) <= seconds
        done = [f"{span.kind[0].upper()}{span.micro_batch}" for span in spans if span.kind in ("forward", "backward")]
        assert sorted(done) == sorted(f"{kind}{micro}" for kind in "FB" for micro in range(MICRO))
        waits = sum(span.kind == "wait" for span in spans)
        assert waits == MICRO * ((number > 0) + (number < 2))
        assert [span.kind for span in spans][-2:] == ["reduce", "update"]


def test_devices_whose_clocks_differ_are_brought_onto_one() -> None:
    """Here all clocks are really the same, so the truth is known."""
    found = run(Stage, PLAN)
    first, *others = (gathered for _, _, gathered in found)
    assert others == [[], []]
    truth = [span for _, spans, _ in found for span in spans]
    began = min(span.start_s for span in truth)
    assert min(span.start_s for span in first) == 0
    for span, true in zip(first, truth, strict=True):
        assert (span.device, span.kind, span.micro_batch) == (true.device, true.kind, true.micro_batch)
        assert span.start_s == pytest.approx(true.start_s - began, abs=0.05)
        assert span.seconds == pytest.approx(true.seconds, abs=1e-6)


class LazyTransport(SlowTransport):
    lazy = True


def test_messages_travel_while_stages_compute() -> None:
    """A step takes its computation, and the transfers of the first micro-batch down and of the last one back. Were a
    message to travel only once its stage waits for it, every micro-batch would add its own; that is run as well."""
    ideal = 2 * (MICRO + 1) * COMPUTE + 2 * DELIVERY
    one_by_one = ideal + 2 * (MICRO - 1) * DELIVERY

    def longest(transport: type[SlowTransport]) -> float:
        return max(seconds for seconds, _, _ in run(SlowStage, TWO, transport))

    assert longest(LazyTransport) >= one_by_one
    assert any(ideal <= longest(SlowTransport) < (ideal + one_by_one) / 2 for _ in range(4))  # machines have hiccups
