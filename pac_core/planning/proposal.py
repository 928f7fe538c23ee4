"""Plans of all schedulers beside each other: one is proposed, and it is shown what it beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import PacError
from pac_core.planning.make import plan
from pac_core.planning.simulate import Timeline, simulate
from pac_core.planning.work import Work
from pac_core.registry import Registry

PREFERRED = ("pac-hetero", "pac")
"""Schedulers that come first among those whose runs take equally long; their reason is told where nothing fits."""

UNCHANGED = "as before"
"""Stands for a scheduler where a plan is kept that there was before a change."""

SLOW = {"exhaustive": 3}
"""Schedulers that try everything, and the devices up to which they are quick enough to be asked as well."""


@dataclass(frozen=True)
class Candidate:
    """What one scheduler would do.

    Attributes:
        scheduler: its name.
        timeline: of a run by its plan, simulated; None if it has none.
        step_s: seconds of a mini-batch that trains in the stages, which is what planners look at.
        reason: why it has no plan.
    """

    scheduler: str
    timeline: Timeline | None
    step_s: float | None = None
    reason: str = ""

    @property
    def order(self) -> tuple[bool, float]:
        """By which candidates are sorted: the quickest run that fits first, those without a plan last."""
        if self.timeline is None:
            return True, float("inf")
        return bool(self.timeline.out_of_memory), self.timeline.seconds


@dataclass(frozen=True)
class Proposal:
    """A plan for a cluster, and what others would take.

    Attributes:
        cluster: that was planned for.
        work: of the run.
        chosen: a run by the plan, simulated.
        step_s: as in `Candidate`.
        candidates: of all schedulers that were asked, the chosen one too, best first.
    """

    cluster: Cluster
    work: Work
    chosen: Timeline
    step_s: float
    candidates: tuple[Candidate, ...]

    @property
    def quickest(self) -> Candidate:
        """The best one that a run can follow; the best of all if none has the leader."""
        return quickest(self.candidates, self.cluster)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Devices without work, in the order of the cluster."""
        used = self.chosen.plan.devices
        return tuple(device.name for device in self.cluster.devices if device.name not in used)

    @property
    def predicted(self) -> dict[str, Any]:
        """Seconds and bytes of the run, as they stand in JSON. Epoch 1 has the backbone's pass in it, and the run takes
        epoch 1, spreading and the other epochs. Without an epoch from the cache there is no spreading either."""
        first, *later = self.chosen.phases
        seconds = {phase.name: phase.seconds for phase in later}
        cached = seconds["cached"] / self.work.cached_epochs if later else None
        return {
            "seconds": self.chosen.seconds,
            "mini_batch_seconds": self.step_s,
            "prefill_seconds": first.seconds if self.work.prefill else None,
            "epoch_1_seconds": first.seconds + (cached or 0.0) * self.work.prefill,
            "spread_seconds": seconds.get("spread"),
            "cached_epoch_seconds": cached,
            "bytes_sent": round(self.chosen.bytes_sent),
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        told = self.chosen.to_json()
        return {
            "plan": told["plan"],
            "predicted": self.predicted,
            "fits": told["fits"],
            "devices": told["devices"],
            "left_out": list(self.left_out),
            "alternatives": [self._alternative(candidate) for candidate in self.candidates],
        }

    def _alternative(self, candidate: Candidate) -> dict[str, Any]:
        found = candidate.timeline
        return {
            "scheduler": candidate.scheduler,
            "chosen": found is self.chosen,
            "seconds": None if found is None else found.seconds,
            "mini_batch_seconds": candidate.step_s,
            "fits": found is not None and not found.out_of_memory,
            "reason": candidate.reason or None,
            "plan": None if found is None else found.plan.to_json(),
        }


def quickest(candidates: Sequence[Candidate], cluster: Cluster) -> Candidate:
    """The first of ``candidates`` that fits and whose plan has the leader, without which there is no run; the first of
    all if there is none."""
    leader = cluster.devices[0].name
    planned = ((one, one.timeline) for one in candidates if one.timeline is not None)
    usable = (one for one, run in planned if leader in run.plan.devices and not run.out_of_memory)
    return next(usable, candidates[0])


def propose(
    profile: Profile,
    cluster: Cluster,
    job: Job,
    work: Work,
    registry: Registry,
    scheduler: str | None = None,
    before: Plan | None = None,
) -> Proposal:
    """Plan with one scheduler, and ask all others what they would do.

    Args:
        scheduler: by name; that of the `quickest` run if None, since each looks at mini-batches in the stages alone.
        before: a plan that there is, which stays if it makes the quicker run; it counts if its devices are there.

    Raises:
        UnknownPlugin: there is no such scheduler.
        BadInput: it has no plan, or none has; the text says why.
    """

    def played(name: str, made: Plan) -> Candidate:
        step = simulate(made, profile, cluster, job).step_s
        return Candidate(name, simulate(made, profile, cluster, job, work), step)

    def ask(one: str) -> Candidate:
        return played(one, plan(profile, cluster, job, one, registry))

    def tried(one: str) -> Candidate:
        try:
            return ask(one)
        except PacError as error:
            return Candidate(one, None, None, str(error))

    known = sorted(registry.names("schedulers"), key=lambda one: (*(one != name for name in PREFERRED), one))
    first = [] if scheduler is None else [ask(scheduler)]
    if before is not None and {*before.devices} <= {device.name for device in cluster.devices}:
        first.append(played(UNCHANGED, before))
    quick = (one for one in known if len(cluster.devices) <= SLOW.get(one, len(cluster.devices)))
    found = sorted([*first, *(tried(one) for one in quick if one != scheduler)], key=lambda one: one.order)
    chosen = quickest(found if scheduler is None else sorted(first, key=lambda one: one.order), cluster)
    if chosen.timeline is None or chosen.step_s is None:
        chosen = ask(known[0])  # says why not
    assert chosen.timeline is not None
    assert chosen.step_s is not None
    return Proposal(cluster, work, chosen.timeline, chosen.step_s, tuple(found))
