"""A plan in a run: its devices have the ranks of the run's team, whatever the order in which the stages list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput


@dataclass(frozen=True)
class RankedPlan(Plan):
    """A plan whose devices are ranked as those of a run are: the leader, of rank 0, may run any of its stages. Planners
    and the simulator know plans without ranks.

    Attributes:
        names: of its devices, by rank.

    Raises:
        BadInput: these are not the plan's devices.
    """

    names: tuple[str, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = super().devices
        if sorted(self.names) != sorted(listed):
            raise BadInput(f"the plan is for {', '.join(listed)}, and the devices are {', '.join(self.names)}")

    @property
    def devices(self) -> tuple[str, ...]:
        return self.names

    def group(self, stage: int) -> tuple[int, ...]:
        return tuple(self.names.index(device) for device in self.stages[stage].devices)


def ranked(plan: Plan, names: Sequence[str]) -> RankedPlan:
    """``plan`` in a run whose devices, by rank, are ``names``."""
    return RankedPlan(**{own.name: getattr(plan, own.name) for own in fields(Plan)}, names=tuple(names))
