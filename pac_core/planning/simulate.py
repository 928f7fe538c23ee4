"""What a plan would take: time, memory and messages of both phases, without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput
from pac_core.planning.cost import Costs, all_reduce_s, costs, places, slice_of
from pac_core.planning.events import Played, Transfer, play
from pac_core.spans import Span

LENGTH = 128
"""Tokens of a sample where no job says."""

PhaseName = Literal["fill", "spread", "cached"]


@dataclass(frozen=True)
class Work:
    """What a run works through.

    Attributes:
        samples: of an epoch.
        epochs: all of them, the first included.
        caches: whether the first epoch keeps its taps and the others train from them; else all run the stages.
    """

    samples: int
    epochs: int = 1
    caches: bool = True


@dataclass(frozen=True)
class Phase:
    """A part of the run: ``"fill"`` through the stages (all epochs without a cache), ``"spread"``, ``"cached"``."""

    name: PhaseName
    seconds: float
    bytes_sent: float


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device during a mini-batch.

    Attributes:
        device: its name.
        budget: bytes that it may take.
        held: bytes of weights, gradients and optimiser state.
        steps: (second, bytes) from when on it takes that much, in order.
    """

    device: str
    budget: int
    held: int
    steps: tuple[tuple[float, int], ...]

    @property
    def peak(self) -> int:
        """Most bytes that it takes at any time."""
        return max((size for _, size in self.steps), default=self.held)

    @property
    def missing(self) -> int:
        """Bytes that it lacks at its peak; 0 if it fits."""
        return max(self.peak - self.budget, 0)


@dataclass(frozen=True)
class Timeline:
    """What a plan would take.

    Attributes:
        plan: that was simulated.
        step_s: seconds of a whole mini-batch in the first epoch.
        spans, transfers: of that mini-batch.
        memory: by device, in the order of the ranks.
        phases: of the run.
    """

    plan: Plan
    step_s: float
    spans: tuple[Span, ...]
    transfers: tuple[Transfer, ...]
    memory: tuple[DeviceMemory, ...]
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def bytes_sent(self) -> float:
        """Bytes that devices send each other in the run."""
        return sum(phase.bytes_sent for phase in self.phases)

    @property
    def out_of_memory(self) -> tuple[DeviceMemory, ...]:
        """Devices that lack memory."""
        return tuple(device for device in self.memory if device.missing)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "seconds": self.seconds,
            "step_seconds": self.step_s,
            "bytes_sent": round(self.bytes_sent),
            "fits": not self.out_of_memory,
            "phases": [
                {"phase": phase.name, "seconds": phase.seconds, "bytes_sent": round(phase.bytes_sent)}
                for phase in self.phases
            ],
            "devices": [
                {"device": m.device, "peak_bytes": m.peak, "budget_bytes": m.budget, "missing_bytes": m.missing}
                for m in self.memory
            ],
            "spans": [vars(span) for span in self.spans],
            "messages": [vars(transfer) for transfer in self.transfers],
            "plan": self.plan.to_json(),
        }


def simulate(
    plan: Plan, profile: Profile, cluster: Cluster, job: Job | None = None, work: Work | None = None
) -> Timeline:
    """Simulate a plan: the first epoch through its stages, then cached epochs on all of its devices.

    The update of the weights, and the writing of cache entries, count where they were measured.

    Args:
        job: how long samples are; 128 tokens if None. Its batch is that of the plan.
        work: samples and epochs; one mini-batch of one epoch if None.

    Raises:
        BadInput: the plan uses a device that is not in the cluster, or layers that the profile does not have.
    """
    _check(plan, profile, cluster)
    batch = plan.micro_batches * plan.micro_batch_size
    job = job or Job(batch, plan.micro_batch_size, LENGTH, LENGTH)
    work = work or Work(batch)
    if not work.caches:
        cluster = replace(cluster, devices=tuple(replace(d, write_bytes_per_s=None) for d in cluster.devices))
    found = costs(profile, job)
    slices = [places(profile, stage) for stage in plan.stages]
    whole = play(plan, found, slices, cluster, job.batch_size)
    phases = _phases(plan, found, slices, cluster, job, work, whole)
    return Timeline(
        plan, whole.seconds, whole.spans, whole.transfers, _memory(plan, found, slices, cluster, whole), phases
    )


def _check(plan: Plan, profile: Profile, cluster: Cluster) -> None:
    there = {device.name for device in cluster.devices}
    absent = [name for stage in plan.stages for name in stage.devices if name not in there]
    if absent:
        raise BadInput(f"the plan uses device '{absent[0]}', which is not in the cluster: {', '.join(sorted(there))}")
    covered = [places(profile, stage) for stage in plan.stages if _known(profile, stage.layers)]
    ends = [0, *(last for _, last in covered)]
    if (
        len(covered) < len(plan.stages)
        or any(first != end for (first, _), end in zip(covered, ends))
        or (ends[-1] != len(profile.chain()))
    ):
        chain = ", ".join(f"{stream} [0, {len(layers)})" for stream, layers in profile.layers.items())
        raise BadInput(f"the plan is for another model: this one's stages must run {chain} once and in order")


def _known(profile: Profile, layers: Mapping[str, tuple[int, int]]) -> bool:
    return all(last <= len(profile.layers.get(stream, ())) for stream, (_, last) in layers.items())


def _phases(
    plan: Plan, found: Costs, slices: list[tuple[int, int]], cluster: Cluster, job: Job, work: Work, whole: Played
) -> tuple[Phase, ...]:
    steps, rest = divmod(work.samples, job.batch_size)
    played = [(steps, whole)] + ([(1, play(plan, found, slices, cluster, rest))] if rest else [])
    epochs = 1 if work.caches else work.epochs
    seconds = epochs * sum(count * one.seconds for count, one in played)
    sent = epochs * sum(count * _sent(one) for count, one in played)
    fill = Phase("fill", seconds, sent)
    if not work.caches or work.epochs == 1:
        return (fill,)
    return fill, _spread(plan, found, slices, cluster, work), _cached(plan, found, cluster, job, work)


def _sent(played: Played) -> float:
    return sum(transfer.size for transfer in played.transfers) + played.reduced_bytes


def _spread(plan: Plan, found: Costs, slices: list[tuple[int, int]], cluster: Cluster, work: Work) -> Phase:
    """Entries go to the owners of their samples, who have equal shares of them, and side layers to all devices. Each
    device sends and receives at once, one message at a time."""
    busiest, total = 0.0, 0.0
    for stage, (first, last) in zip(plan.stages, slices):
        for name, rows in zip(stage.devices, stage.rows):
            link = cluster.link(name, next((o for s in plan.stages for o in s.devices if o != name), name))
            made = work.samples * rows / plan.micro_batch_size * slice_of(found.cached_bytes, first, last)
            leaves = made * (plan.size - 1) / plan.size
            comes = work.samples / plan.size * found.cached_bytes[-1] - made / plan.size
            side = found.gradient_bytes[-1] - slice_of(found.gradient_bytes, first, last)
            busiest = max(busiest, 8 * (max(leaves, comes) + side) / link.bits_per_second)
            total += leaves + side
    return Phase("spread", total * 8 / link.bits_per_second if cluster.shared else busiest, total)


def _cached(plan: Plan, found: Costs, cluster: Cluster, job: Job, work: Work) -> Phase:
    """Every device trains the whole side network on its share of each mini-batch."""
    names = [name for stage in plan.stages for name in stage.devices]
    devices = {device.name: device for device in cluster.devices}
    steps = -(-work.samples // job.batch_size)
    rows = work.samples / steps / plan.size
    slowest = max(found.cached_seconds(devices[name], rows) for name in names)
    size = found.gradient_bytes[-1]
    times = steps * (work.epochs - 1)
    sent = 2 * (plan.size - 1) * size
    return Phase("cached", times * (slowest + all_reduce_s(cluster, names, size)), times * sent)


def _memory(
    plan: Plan, found: Costs, slices: list[tuple[int, int]], cluster: Cluster, played: Played
) -> tuple[DeviceMemory, ...]:
    budgets = {device.name: device.memory_bytes for device in cluster.devices}
    memory = []
    for stage, (first, last) in zip(plan.stages, slices):
        held = slice_of(found.held_bytes, first, last)
        kept = slice_of(found.kept_bytes, first, last)
        for name, rows in zip(stage.devices, stage.rows):
            changes = [(s.start_s, rows * kept) for s in played.spans if s.device == name and s.kind == "forward"]
            changes += [(s.end_s, -rows * kept) for s in played.spans if s.device == name and s.kind == "backward"]
            level, steps = held, [(0.0, round(held))]
            for time, change in sorted(changes):
                level += change
                steps.append((time, round(level)))
            memory.append(DeviceMemory(name, budgets[name], round(held), tuple(steps)))
    return tuple(memory)
