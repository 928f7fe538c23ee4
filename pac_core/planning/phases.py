"""The phases of a run: the first pass over the samples, the spreading of entries, and the epochs from the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job
from pac_core.contracts.scheduler import Plan
from pac_core.planning.cost import FORWARD, Costs, Crossing, Seconds, all_reduce_s, disk_s, slice_of, update_s
from pac_core.planning.entries import Matrix, Owned, spread_of
from pac_core.planning.events import TOLD, Played, forward_only, play
from pac_core.planning.slowness import Slowness
from pac_core.planning.work import Work
from pac_core.runtime.passes import PASS_TOKENS, PASSES, widened
from pac_core.runtime.schedule import actions_of
from pac_core.spans import Span

PhaseName = Literal["weights", "scales", "prefill", "fill", "spread", "cached"]

BUCKET_BYTES = 1 << 20
"""Gradients that are summed at once; see `pac_core.runtime.overlap`."""

DRAWN = 16
"""Mini-batches that are played where they differ by chance; the others take as long as these do on average."""

DRAWN_STEPS = 1000
"""The same of steps from the cache."""


@dataclass(frozen=True)
class Phase:
    """A part of the run.

    Attributes:
        name: ``"prefill"`` if the backbone runs alone, ``"fill"`` if the side network trains through the stages as well
            (all epochs without a cache), ``"spread"``, ``"cached"``; before them, where a run has them, ``"weights"``
            and ``"scales"`` (see `pac_core.planning.beginning`).
        seconds: that it adds to the run. Of a spreading beside the first cached epoch, those that training waits.
        bytes_sent: from device to device.
        bytes_written, bytes_read: of cache entries, by all devices together.
    """

    name: PhaseName
    seconds: float
    bytes_sent: float
    bytes_written: float = 0.0
    bytes_read: float = 0.0


@dataclass(frozen=True)
class Run:
    """A plan with what it costs and works through.

    Attributes:
        plan, job, work: as given to `simulate`.
        found: costs of the samples, with the bytes of entries as they are kept.
        slices: for each stage its slice of the chain.
        cluster: with the rates that devices have all the time.
        owned: which samples each device trains on from the cache.
    """

    plan: Plan
    found: Costs
    slices: Sequence[tuple[int, int]]
    cluster: Cluster
    job: Job
    work: Work
    owned: Owned

    @cached_property
    def devices(self) -> list[DeviceProfile]:
        """Of the plan, by rank."""
        by_name = {device.name: device for device in self.cluster.devices}
        return [by_name[name] for stage in self.plan.stages for name in stage.devices]

    @cached_property
    def names(self) -> list[str]:
        """Of the devices, by rank."""
        return [device.name for device in self.devices]

    @cached_property
    def budgets(self) -> dict[str, int]:
        """Bytes that each device may take."""
        return {device.name: device.memory_bytes for device in self.devices}

    @cached_property
    def tokens(self) -> float:
        """Of a sample of mean length, in all streams."""
        streams = dict.fromkeys(stream for stage in self.plan.stages for stream in stage.layers)
        return sum(self.job.mean(stream) for stream in streams)

    @property
    def slowness(self) -> Slowness:
        """Of the devices."""
        return self.work.slowness

    @cached_property
    def pass_plan(self) -> Plan:
        """The plan that the first pass over the samples runs: in a prefill, with micro-batches as large as it makes."""
        if not self.work.prefill:
            return self.plan
        stages = len(self.plan.stages)
        tokens = min(PASS_TOKENS, max(self.work.samples * self.tokens // (PASSES * stages), 1))
        wide = widened(self.plan, int(tokens // self.tokens))
        return replace(wide, micro_batches=PASSES * stages, schedule="gpipe", in_flight=None)

    @property
    def batch(self) -> int:
        """Samples of a whole mini-batch of the first pass."""
        if self.work.prefill:
            return self.pass_plan.micro_batches * self.pass_plan.micro_batch_size
        return self.job.batch_size

    @cached_property
    def pass_costs(self) -> Costs:
        """Of the first pass over the samples."""
        if self.work.prefill:
            return backbone_alone(self.found)
        if not self.work.caches:  # then nothing is written either
            return replace(self.found, cached_bytes=(0.0,) * len(self.found.cached_bytes))
        return self.found

    def played(self, rows: int, number: int = 0) -> Played:
        """A mini-batch of the first pass, the ``number``-th of its kind."""
        plan = self.pass_plan
        actions = forward_only if self.work.prefill else actions_of
        micro = -(-rows // plan.micro_batch_size)
        counts = [len(actions(plan, plan.place(rank)[0], micro)) for rank in range(plan.size)]
        draws = self.slowness.draws(number, counts)
        return play(plan, self.pass_costs, self.slices, self.cluster, rows, actions, draws)


def backbone_alone(found: Costs) -> Costs:
    """The same costs without the side network: only hidden states go on, nothing comes back, and what is kept for a
    while are taps that are to be written."""
    nothing = (0.0,) * len(found.forward_flops)
    return replace(
        found,
        forward_flops=tuple(all_ - FORWARD * side for all_, side in zip(found.forward_flops, found.side_flops)),
        backward_flops=nothing,
        side_flops=nothing,
        head_flops=0.0,
        held_bytes=tuple(held - side for held, side in zip(found.held_bytes, found.side_bytes)),
        side_bytes=nothing,
        kept_bytes=found.cached_bytes,
        gradient_bytes=nothing,
        crossings=tuple(Crossing(each.forward - each.backward, 0.0) for each in found.crossings),
    )


def phases(run: Run, whole: Played) -> Iterator[Phase]:
    """All phases, in order.

    Args:
        whole: a whole mini-batch of the first pass.
    """
    yield first_pass(run, whole)
    work = run.work
    if work.cached_epochs == 0:
        return
    steps = Cached(run)
    sent = replace(run.found, cached_bytes=work.travelling(run.found.cached_bytes, run.job))
    spread = spread_of(
        run.plan,
        sent,
        run.slices,
        work.samples,
        run.tokens,
        run.owned,
        trained=not work.prefill,
        scaled=work.scaled,
    )
    arrivals = spread.arrivals(run.cluster, run.names)
    added = steps.waited(arrivals) if work.overlaps else float(arrivals[:, -1].max())
    yield Phase("spread", added, spread.sent)
    yield Phase(
        "cached",
        work.cached_epochs * steps.epoch_s,
        work.cached_epochs * steps.count * 2 * (run.plan.size - 1) * run.found.gradient_bytes[-1],
        bytes_read=work.cached_epochs * work.samples * run.found.cached_bytes[-1],
    )


def first_pass(run: Run, whole: Played) -> Phase:
    """Every sample through the stages, once or, without a cache, in every epoch. Entries are written behind it, so that
    a disk counts only where it is slower than all of it."""
    work = run.work
    full, rest = divmod(work.samples, run.batch)
    drawn = range(1, min(full, DRAWN)) if run.slowness.random else ()
    alike = [whole, *(run.played(run.batch, number) for number in drawn)] if full else []
    played = [(full / len(alike), one) for one in alike]
    played += [(1, run.played(rest, DRAWN))] if rest else []
    epochs = 1 if work.caches else work.epochs
    seconds = epochs * sum(count * one.seconds for count, one in played)
    sent = epochs * sum(count * _sent(one) for count, one in played)
    written = _made(run) if work.caches else [0.0] * run.plan.size
    slowest = max(disk_s(device, size) for device, size in zip(run.devices, written))
    return Phase("prefill" if work.prefill else "fill", max(seconds, slowest), sent, bytes_written=sum(written))


def _made(run: Run) -> list[float]:
    """Bytes of entries that each device makes of all samples."""
    plan = run.plan
    return [
        run.work.samples * rows / plan.micro_batch_size * slice_of(run.found.cached_bytes, first, last)
        for stage, (first, last) in zip(plan.stages, run.slices)
        for rows in stage.rows
    ]


def _sent(played: Played) -> float:
    return sum(transfer.size for transfer in played.transfers) + played.reduced_bytes


class Cached:
    """Steps from the cache: each device trains the whole side network on its share of a mini-batch, and all sum their
    gradients.

    Attributes:
        count: steps of an epoch.
        rows: of a mini-batch on each device, on average; 0 on one that is far slower than others.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.count = -(-run.work.samples // run.job.batch_size)
        self.rows: list[float] = (run.work.samples / self.count * run.owned.parts).tolist()
        size = run.found.gradient_bytes[-1]
        self._reduce_s = all_reduce_s(run.cluster, run.names, size)
        self._after_s = self._left(size) if run.work.sums_beside else self._reduce_s
        self._updates = np.array([update_s(device, size) for device in run.devices])
        self._reads = np.array([disk_s(d, rows * run.found.cached_bytes[-1]) for d, rows in self._shares()])
        self._computes = np.array([self._side_seconds(*share).both for share in self._shares()])

    def _shares(self) -> Iterator[tuple[DeviceProfile, float]]:
        """Each device with its rows."""
        return zip(self.run.devices, self.rows, strict=True)

    def _side_seconds(self, device: DeviceProfile, rows: float) -> Seconds:
        """Both passes over a device's share, a micro-batch at a time."""
        if rows == 0:
            return Seconds(0.0, 0.0)
        size = min(self.run.job.micro_batch_size or rows, rows)
        count, rest = divmod(rows, size)
        whole, last = self.run.found.side_seconds(device, size), self.run.found.side_seconds(device, rest)
        if rest == 0:
            return Seconds(count * whole.forward, count * whole.backward)
        return Seconds(count * whole.forward + last.forward, count * whole.backward + last.backward)

    @property
    def step_s(self) -> float:
        """Seconds of a step without random slowness."""
        return float((self._reads + self._computes).max() + self._after_s + self._updates.max())

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch."""
        own = self._own(min(self.count, DRAWN_STEPS))
        return float(self.count * (own.max(1).mean() + self._after_s + self._updates.max()))

    def _left(self, size: float) -> float:
        """Seconds that sums of ``size`` bytes go on after the backward pass, if each bucket's begins once it is ready;
        a last one is of the loss."""
        run, count = self.run, max(int(size // BUCKET_BYTES), 1)
        back = max(run.found.side_seconds(device, rows).backward for device, rows in self._shares() if rows)
        taken, done = all_reduce_s(run.cluster, run.names, size / count), 0.0
        for number in range(1, count + 1):
            done = max(done, back * number / count) + taken
        return done - back + all_reduce_s(run.cluster, run.names, TOLD)

    def _own(self, count: int) -> Matrix:
        """(steps, devices) seconds until each device has its gradients."""
        if not self.run.slowness.random:
            steady: Matrix = (self._reads + self._computes)[None, :]
            return steady
        draws = np.array(self.run.slowness.draws(DRAWN + 1, [len(self._computes)] * count))
        drawn: Matrix = self._reads + self._computes * draws
        return drawn

    def waited(self, arrivals: Matrix) -> float:
        """Seconds that the first epoch takes longer because entries arrive beside it.

        Sums of gradients have right of way: what is still to arrive comes later by as long as they take.

        Args:
            arrivals: as `Spread.arrivals` gives them; each step needs its part of them.
        """
        if not arrivals.any():
            return 0.0
        own = self._own(min(self.count, DRAWN_STEPS))
        together = self._after_s + float(self._updates.max())
        clock, alone, late = 0.0, 0.0, 0.0
        for step in range(self.count):
            turn = -(-(step + 1) * arrivals.shape[1] // self.count) - 1
            taken = own[step % len(own)]
            clock = float((np.maximum(clock, arrivals[:, turn] + late) + taken).max()) + together
            alone += float(taken.max()) + together
            late += self._reduce_s
        return clock - alone

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes on each device, by name: the whole side network, and activations of a micro-batch."""
        found, most = self.run.found, self.run.job.micro_batch_size
        return {
            device.name: round(found.side_bytes[-1] + min(math.ceil(rows), most or rows) * found.kept_bytes[-1])
            for device, rows in self._shares()
        }

    def spans(self) -> Iterator[Span]:
        """A step on a clock of its own: reading counts as waiting."""
        ready = float((self._reads + self._computes).max())
        for (device, rows), read in zip(self._shares(), self._reads.tolist()):
            taken = self._side_seconds(device, rows)
            if read:
                yield Span(device.name, "wait", None, 0.0, read)
            if rows:
                yield Span(device.name, "forward", None, read, read + taken.forward)
                yield Span(device.name, "backward", None, read + taken.forward, read + taken.both)
            if self._reduce_s:
                yield Span(device.name, "reduce", None, ready, ready + self._reduce_s)
        for device, taken_s in zip(self.run.devices, self._updates.tolist()):
            if taken_s:
                begin = ready + self._reduce_s
                yield Span(device.name, "update", None, begin, begin + taken_s)
