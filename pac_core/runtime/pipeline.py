"""One executor for any plan: a device runs its stage's actions in order, and talks to the stages beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from itertools import accumulate

import torch
from torch import Tensor

from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.scheduler import Plan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.examples import Example
from pac_core.runtime.optimizer import clip, cut, gradient_norm, set_rates
from pac_core.runtime.parts import Part, from_message, join, join_tensors, rows_of_tensors, to_message
from pac_core.runtime.routes import Route, learning_stages, routes, share_of
from pac_core.runtime.schedule import Action, actions_of
from pac_core.runtime.stage import Passed, Stage
from pac_core.runtime.timeline import Recording
from pac_core.spans import Span, SpanKind

_NOTHING = nullcontext()


class Pipeline:
    """The part of one device in training steps that all devices of a plan make together.

    Every device calls the same methods with the same numbers, in the same order. However a batch is cut and split, the
    gradient is that of its mean loss: a part weighs by the predictions it holds (see `PacModel.learnt`).

    Args:
        plan: who runs what.
        stage: this device's slice of the model.
        transport: connects the devices, ranked as in `Plan`.
        timeout: seconds to wait for another device, its computation included; None for the transport's own.

    Attributes:
        asked: what the devices told each other in the last step: the sums of their ``asks``.

    Raises:
        BadInput: the plan is not for this model or this number of devices.
    """

    def __init__(self, plan: Plan, stage: Stage, transport: Transport, *, timeout: float | None = None) -> None:
        plan.check(stage.chain)
        if plan.size != transport.size:
            raise BadInput(f"the plan is for {plan.size} devices, but {transport.size} are connected")
        self.plan = plan
        self.stage = stage
        self.transport = transport
        self.timeout = timeout
        self.number, _ = plan.place(transport.rank)
        self.group = sorted(plan.group(self.number))  # as collectives want it
        self._routes = cache(partial(routes, plan, transport.rank))
        self._learns = learning_stages(plan, stage.model.side.reads)
        self._in_flight: dict[int, tuple[Sequence[Example], Passed]] = {}
        self._sends: list[Work[None]] = []
        self.asked: tuple[float, ...] = ()
        self._recording: Recording | None = None

    @contextmanager
    def recorded(self) -> Iterator[list[Span]]:
        """Within it, what this device's computing thread does is noted, in seconds of `time.perf_counter`; see
        `pac_core.runtime.timeline.gather_spans`.

        ``"send"`` is the handing over of a message, which takes time only where the queue of sends is full, and, at the
        end, waiting until all have left. Messages travel beside whatever else is noted.
        """
        stage = self.plan.stages[self.number]
        self._recording = Recording(stage.devices[self.plan.place(self.transport.rank)[1]])
        try:
            yield self._recording.spans
        finally:
            self._recording = None

    def step(
        self,
        optimizer: torch.optim.Optimizer | None,
        rows: int,
        batch: Sequence[Example] = (),
        *,
        rate: float = 1.0,
        max_norm: float | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        asks: Sequence[float] = (),
    ) -> float:
        """One optimiser step over a batch; returns its mean loss, the same on every device.

        Args:
            optimizer: this device's, made by `make_optimizer`; None for a stage without parameters.
            rows: rows of the batch.
            batch, tensors: as in `gradients`.
            rate: part of the peak learning rates.
            max_norm: most that the norm of all stages' gradients together may be.
            asks: numbers, as many on every device, whose sums all of them learn with the loss (see `asked`): to agree
                on a stop, say.

        Raises:
            PeerLost, TransportTimeout: another device is gone or does not answer. This device's weights are those from
                before the step; others may have made it.
        """
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=False)
        loss = self.gradients(rows, batch, tensors)
        loss, norm = self._sums(loss, None if optimizer is None else gradient_norm(optimizer), asks)
        if optimizer is not None:
            with self._doing("update"):
                clip(optimizer, max_norm, norm)
                set_rates(optimizer, rate)
                optimizer.step()
        return float(loss)

    def gradients(
        self, rows: int, batch: Sequence[Example] = (), tensors: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Give this stage's parameters the gradient of a batch's mean loss, summed over the device group.

        Gradients must have been cleared: what is there already would be summed over the group as well.

        Args:
            rows: rows of the batch.
            batch: the whole batch, on the devices of the first stage; others are sent what they need.
            tensors: what else is known of the rows beforehand, named as in `Part`: ``match`` and statistics of texts
                read apart, which depend on all taps.

        Returns:
            () what this device's rows add to the loss; 0 but on the last stage.

        Raises:
            BadInput: the task reads texts apart and their matches are not given.
        """
        if self.number == 0 and self.stage.model.task.apart and not tensors:
            raise BadInput("texts read apart are matched in all taps before they are learnt from; fill the cache first")
        sizes = self._sizes(rows, batch)
        actions = actions_of(self.plan, self.number, len(sizes))
        own = self._parts(batch, sizes, tensors or {})
        loss = torch.zeros((), dtype=torch.float64)
        try:
            for action, messages in self._with_messages(actions, sizes):
                if action.kind == "backward":
                    self._backward(action.micro, messages, sizes)
                else:
                    added = self._forward(action.micro, arrived(messages) or own(action.micro), sizes)
                    loss = loss if added is None else loss + added
            self._wait_for_sends()
        finally:
            self._in_flight.clear()
        self._reduce()
        return loss

    def fill(
        self, rows: int, batch: Sequence[Example] = (), keep: Callable[[Part], Tensor] | None = None
    ) -> list[Tensor]:
        """Run the backbone over a batch, so that its taps are in the devices' shares of the cache; nothing is learnt.

        Arguments as in `gradients`. Returns, on the last stage, what ``keep`` makes of this device's rows with b_L
        under ``<stream>.b``, a micro-batch at a time; they are not held.
        """
        sizes = self._sizes(rows, batch)
        own = self._parts(batch, sizes, {})
        done = []
        for action, messages in self._with_messages([Action("forward", m) for m in range(len(sizes))], sizes):
            part = arrived(messages) or own(action.micro)
            if part is None:
                continue
            result = self.stage.fill(part)
            self._send_on(action.micro, result, sizes)
            if keep is not None and self.stage.is_last:
                done.append(keep(result))
        self._wait_for_sends()
        return done

    def _sizes(self, rows: int, batch: Sequence[Example]) -> list[int]:
        """Rows of each micro-batch."""
        if self.number == 0 and len(batch) != rows:
            raise ValueError(f"the first stage was given {len(batch)} rows of a batch of {rows}")
        return [len(piece) for piece in cut(rows, self.plan.micro_batch_size)]

    def _wait_for_sends(self) -> None:
        with self._doing("send"):
            while self._sends:
                self._sends.pop().wait(self.timeout)

    def _doing(self, kind: SpanKind, micro: int | None = None) -> AbstractContextManager[None]:
        """Within it, this is what the device does, if that is being recorded."""
        return _NOTHING if self._recording is None else self._recording.span(kind, micro)

    def _parts(
        self, batch: Sequence[Example], sizes: Sequence[int], tensors: Mapping[str, Tensor]
    ) -> Callable[[int], Part | None]:
        """Gives this device's part of a micro-batch where no message does: on the first stage; else None."""
        total = self.stage.model.learnt(batch) if batch else 0
        starts = [0, *accumulate(sizes)]

        def part(micro: int) -> Part | None:
            first, last = share_of(self.plan, self.transport.rank, sizes[micro])
            if first == last:
                return None
            start = starts[micro]
            return Part(batch, total, tensors).rows(start + first, start + last)

        return part

    def _with_messages(self, actions: Sequence[Action], sizes: Sequence[int]) -> Iterator[tuple[Action, list[Message]]]:
        """Each action with the messages it needs. The next ones' receives are posted before it runs, so that they
        travel while it computes; no more are, so that this device never holds more than one action's ahead."""
        needing = deque(action for action in actions if self._sources(action, sizes))
        posted: deque[list[Work[Message]]] = deque()
        for action in actions:
            needs = bool(self._sources(action, sizes))
            while needing and len(posted) < 1 + needs:
                posted.append(self._post(needing.popleft(), sizes))
            yield action, self._arrived(action, posted.popleft()) if needs else []

    def _arrived(self, action: Action, works: Sequence[Work[Message]]) -> list[Message]:
        with self._doing("wait", action.micro):
            return [work.wait(self.timeout) for work in works]

    def _post(self, action: Action, sizes: Sequence[int]) -> list[Work[Message]]:
        tag = Tag(action.kind, self.number, action.micro)
        return [self.transport.irecv(route.rank, tag) for route in self._sources(action, sizes)]

    def _sources(self, action: Action, sizes: Sequence[int]) -> tuple[Route, ...]:
        """Where the messages come from that an action needs."""
        if action.kind == "forward":
            return self._routes(self.number - 1, sizes[action.micro])
        if not self._learns[self.number]:
            return ()
        return self._routes(self.number + 1, sizes[action.micro])

    def _forward(self, micro: int, part: Part | None, sizes: Sequence[int]) -> Tensor | None:
        """What the rows of ``part``, if there are any, add to the loss, on the last stage."""
        if part is None:
            return None
        with self._doing("forward", micro):
            result, passed = self.stage.forward(part)
        self._in_flight[micro] = part.examples, passed
        self._send_on(micro, result, sizes)
        return None if passed.loss is None else passed.loss.detach().double().cpu()

    def _send_on(self, micro: int, result: Part, sizes: Sequence[int]) -> None:
        """Send each device of the next stage its rows."""
        for route in self._routes(self.number + 1, sizes[micro]):
            header, tensors = to_message(result.rows(route.first, route.last))
            self._send(route.rank, Message(Tag("forward", self.number + 1, micro), header, tensors))

    def _backward(self, micro: int, messages: Sequence[Message], sizes: Sequence[int]) -> None:
        if micro not in self._in_flight:
            return
        examples, passed = self._in_flight.pop(micro)
        gradients = join_tensors([message.tensors for message in messages]) if messages else {}
        with self._doing("backward", micro):
            found = self.stage.backward(passed, gradients)
        if self.number == 0 or not self._learns[self.number - 1]:
            return
        for route in self._routes(self.number - 1, sizes[micro]):
            rows = rows_of_tensors(found, examples, route.first, route.last)
            self._send(route.rank, Message(Tag("backward", self.number - 1, micro), {}, rows))

    def _send(self, rank: int, message: Message) -> None:
        with self._doing("send", message.tag.micro_batch):
            self._sends.append(self.transport.isend(rank, message, timeout=self.timeout))

    def _reduce(self) -> None:
        """Sum the gradients over the device group."""
        parameters = list(self.stage.model.parameters())
        if len(self.group) == 1 or not parameters:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with self._doing("reduce"):
            self.transport.all_reduce(flat, self.group, timeout=self.timeout)
        for p, gradient, summed in zip(parameters, gradients, torch.split(flat, [p.numel() for p in parameters])):
            p.grad = gradient.copy_(summed.view_as(p))

    def _sums(self, loss: Tensor, norm: Tensor | None, asks: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The batch's loss () and the norm () of all stages' gradients; one device of each group tells the norm. What
        is asked is left in `asked`."""
        counts = norm is not None and self.transport.rank == self.group[0]
        own = norm.double().square().cpu() if norm is not None and counts else torch.zeros((), dtype=torch.float64)
        sums = torch.cat([torch.stack([loss, own]), torch.tensor(asks, dtype=torch.float64)])
        if self.transport.size > 1:
            with self._doing("reduce"):
                self.transport.all_reduce(sums, timeout=self.timeout)
        self.asked = tuple(sums[2:].tolist())
        return sums[0], sums[1].sqrt()


def arrived(messages: Sequence[Message]) -> Part | None:
    """The part that these messages bring; None without any."""
    return join([from_message(message.header, message.tensors) for message in messages]) if messages else None
