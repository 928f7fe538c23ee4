"""What a plan would take: time, memory and messages of both phases, without running anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput
from pac_core.planning.beginning import beginning
from pac_core.planning.cost import costs, places, slice_of
from pac_core.planning.entries import owned_by
from pac_core.planning.events import Played, Transfer
from pac_core.planning.phases import Cached, Phase, Run, phases
from pac_core.planning.profile import quantised
from pac_core.planning.work import Work
from pac_core.spans import Span, by_device

__all__ = ["DeviceMemory", "Phase", "Timeline", "Work", "simulate"]

LENGTH = 128
"""Tokens of a sample where no job says."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device during a mini-batch of the first pass, and in epochs from the cache.

    Attributes:
        device: its name.
        budget: bytes that it may take.
        held: bytes of weights, gradients and optimiser state.
        steps: (second, bytes) from when on it takes that much, in order.
        cached: bytes that it takes in epochs from the cache, at most; 0 if there are none.
    """

    device: str
    budget: int
    held: int
    steps: tuple[tuple[float, int], ...]
    cached: int = 0

    @property
    def peak(self) -> int:
        """Most bytes that it takes at any time."""
        return max(self.held, self.cached, *(size for _, size in self.steps))

    @property
    def missing(self) -> int:
        """Bytes that it lacks at its peak; 0 if it fits."""
        return max(self.peak - self.budget, 0)


@dataclass(frozen=True)
class Timeline:
    """What a plan would take.

    Attributes:
        plan: that was simulated.
        step_s: seconds of a whole mini-batch in the first pass over the samples.
        spans, transfers: of that mini-batch.
        memory: by device, in the order of the ranks.
        phases: of the run.
        cached_step_s: seconds of a mini-batch from the cache; 0 if there is none.
        cached_spans: of that one; reading entries is waiting.
    """

    plan: Plan
    step_s: float
    spans: tuple[Span, ...]
    transfers: tuple[Transfer, ...]
    memory: tuple[DeviceMemory, ...]
    phases: tuple[Phase, ...]
    cached_step_s: float = 0.0
    cached_spans: tuple[Span, ...] = ()

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
            "cached_step_seconds": self.cached_step_s,
            "bytes_sent": round(self.bytes_sent),
            "fits": not self.out_of_memory,
            "phases": [_phase(phase) for phase in self.phases],
            "devices": [_device(memory) for memory in self.memory],
            "spans": [vars(span) for span in self.spans],
            "cached_spans": [vars(span) for span in self.cached_spans],
            "messages": [vars(transfer) for transfer in self.transfers],
            "plan": self.plan.to_json(),
        }


def simulate(
    plan: Plan, profile: Profile, cluster: Cluster, job: Job | None = None, work: Work | None = None
) -> Timeline:
    """Simulate a plan: the first pass over the samples through its stages, then epochs from the cache on all of its
    devices.

    Left out are the drawing of batches and what changes the format of entries, which take next to no time beside these.

    Args:
        job: how long samples are; 128 tokens if None. Its batch is that of the plan.
        work: samples and epochs, and how they are run; one mini-batch of one epoch if None.

    Raises:
        BadInput: the plan uses a device that is not in the cluster, or layers that the profile does not have.
    """
    _check(plan, profile, cluster)
    batch = plan.micro_batches * plan.micro_batch_size
    job = job or Job(batch, plan.micro_batch_size, LENGTH, LENGTH)
    work = work or Work(batch)
    if not work.caches:
        cluster = replace(cluster, devices=tuple(replace(d, write_bytes_per_s=None) for d in cluster.devices))
    found = costs(profile if plan.weights == profile.weights else quantised(profile), job)
    found = replace(found, cached_bytes=work.kept(found.cached_bytes, job))
    slices = [places(profile, stage) for stage in plan.stages]
    owned = owned_by(plan, cluster, job.batch_size)  # of devices as they are known: nobody knows that one is slow
    run = Run(plan, found, slices, work.slowness.slowed(cluster), job, work, owned)
    whole = run.played(run.batch)
    cached = Cached(run) if work.cached_epochs else None
    return Timeline(
        plan,
        whole.seconds,
        whole.spans,
        whole.transfers,
        tuple(_memory(run, whole, cached)),
        (*beginning(run), *phases(run, whole)),
        cached.step_s if cached else 0.0,
        tuple(cached.spans()) if cached else (),
    )


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "phase": phase.name,
        "seconds": phase.seconds,
        "bytes_sent": round(phase.bytes_sent),
        "bytes_written": round(phase.bytes_written),
        "bytes_read": round(phase.bytes_read),
    }


def _device(memory: DeviceMemory) -> dict[str, Any]:
    return {
        "device": memory.device,
        "peak_bytes": memory.peak,
        "budget_bytes": memory.budget,
        "missing_bytes": memory.missing,
        "cached_bytes": memory.cached,
        "memory": [list(step) for step in memory.steps],
    }


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


def _memory(run: Run, played: Played, cached: Cached | None) -> Iterator[DeviceMemory]:
    """Weights, and activations from each forward pass to its backward pass; without one, until it is over."""
    found, own = run.pass_costs, by_device(played.spans)
    trained = cached.memory_bytes if cached else {}
    kept_until = "forward" if run.work.prefill else "backward"
    for stage, (first, last) in zip(run.pass_plan.stages, run.slices):
        held, kept = (slice_of(sums, first, last) for sums in (found.held_bytes, found.kept_bytes))
        for name, rows in zip(stage.devices, stage.rows):
            spans = own.get(name, [])
            changes = [(span.start_s, rows * kept) for span in spans if span.kind == "forward"]
            changes += [(span.end_s, -rows * kept) for span in spans if span.kind == kept_until]
            level, steps = held, [(0.0, round(held))]
            for time, change in sorted(changes):
                level += change
                steps.append((time, round(level)))
            yield DeviceMemory(name, run.budgets[name], round(held), tuple(steps), trained.get(name, 0))
