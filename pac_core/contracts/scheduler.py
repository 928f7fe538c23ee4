"""The plan: which device runs which layers, on which rows of a micro-batch, in which order. Data, no tensors."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pac_core.contracts.backbone import Stream
from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.formats import WeightFormat
from pac_core.errors import BadInput

ScheduleName = Literal["1f1b", "gpipe"]
"""Orders of forward and backward; see `pac_core.runtime.schedule`."""


class Scheduler(ABC):
    """Decides which devices run which layers. The registered factory is ``factory() -> Scheduler``."""

    @abstractmethod
    def plan(self, profile: Profile, cluster: Cluster, job: Job) -> Plan:
        """How the first epoch runs: a pure function, the same for the same arguments on every device.

        The plan covers the chain once, begins no stage between layer 0 and ``profile.first_cut`` of a stream, uses
        devices of the cluster by their names, and has ``job.micro_batch_size`` rows in a micro-batch if that is given.
        It may leave devices out.

        Raises:
            BadInput: there is no such plan; the text names the device, the stage and the bytes that are missing where
                memory is the reason.
        """


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage: a slice of the backbone's chain, and the device group that runs it.

    Attributes:
        layers: per stream the half-open range [first, last) of backbone layers; streams without a layer are left out.
            Embeddings come with first = 0, the head and the loss with the last layer of the chain.
        devices: names of the group's devices.
        rows: rows of a whole micro-batch that each of them takes.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    layers: Mapping[str, tuple[int, int]]
    devices: tuple[str, ...]
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        name = ", ".join(self.devices)
        if not self.devices:
            raise BadInput("a stage has no device; give every stage at least one")
        if len(self.rows) != len(self.devices) or min(self.rows) < 1:
            raise BadInput(
                f"stage of {name}: rows are {list(self.rows)}; give each of its {len(self.devices)} devices at least 1"
            )
        empty = [stream for stream, (first, last) in self.layers.items() if not 0 <= first < last]
        if empty or not self.layers:
            raise BadInput(f"stage of {name}: layers are {_slices(self)}; give [first, last) with 0 <= first < last")

    def split(self, rows: int) -> tuple[int, ...]:
        """Rows that each device takes of a micro-batch of ``rows``, in proportion to `rows`; largest remainders first.

        >>> StagePlan({"encoder": (0, 2)}, ("a", "b"), (3, 1)).split(8)
        (6, 2)
        """
        whole = sum(self.rows)
        exact = [divmod(rows * own, whole) for own in self.rows]
        missing = rows - sum(taken for taken, _ in exact)
        first = sorted(range(len(exact)), key=lambda i: -exact[i][1])[:missing]
        return tuple(taken + (i in first) for i, (taken, _) in enumerate(exact))


@dataclass(frozen=True)
class Plan:
    """How the first epoch runs over several devices: pipeline stages, each run by a device group.

    Devices are ranked in the order in which the stages list them; a run has ranks of its own, see
    `pac_core.runtime.ranks`. A batch is cut into micro-batches of `micro_batch_size` rows (the last may be smaller);
    inside a group their rows are split as `StagePlan.rows` says.

    Attributes:
        stages: in the order of the chain.
        micro_batches: micro-batches of a whole batch.
        schedule: order in which a stage runs its micro-batches forward and backward.
        scheduler: registered name of the scheduler that made the plan.
        in_flight: most micro-batches that a stage may have between forward and backward, where memory is short, at the
            price of idle stages; as many as 1F1B asks for if None.
        weights: how the matrices of the backbone's layers are held.

    Raises:
        BadInput: the stages do not fit together.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    stages: tuple[StagePlan, ...]
    micro_batches: int
    schedule: ScheduleName = "1f1b"
    scheduler: str = "single"
    in_flight: int | None = None
    weights: WeightFormat = "native"

    def __post_init__(self) -> None:
        if not self.stages:
            raise BadInput("the plan has no stage; give at least one")
        if self.micro_batches < 1:
            raise BadInput(f"the plan has {self.micro_batches} micro-batches; give at least 1")
        if self.schedule not in get_args(ScheduleName):
            raise BadInput(f"schedule '{self.schedule}' is not known; choose from {', '.join(get_args(ScheduleName))}")
        if self.weights not in get_args(WeightFormat):
            raise BadInput(f"weights '{self.weights}' are not known; choose from {', '.join(get_args(WeightFormat))}")
        if self.in_flight is not None and (self.in_flight < 1 or self.schedule != "1f1b"):
            raise BadInput(
                f"in_flight is {self.in_flight} with schedule {self.schedule}; give at least 1, with 1f1b, or null"
            )
        devices = [device for stage in self.stages for device in stage.devices]
        twice = sorted({device for device in devices if devices.count(device) > 1})
        if twice:
            raise BadInput(f"device '{twice[0]}' is in the plan twice; a device runs one stage")
        sizes = [sum(stage.rows) for stage in self.stages]
        if len(set(sizes)) > 1:
            raise BadInput(f"the stages take {sizes} rows of a micro-batch; all must take the same number")

    @property
    def micro_batch_size(self) -> int:
        """Rows of a whole micro-batch."""
        return sum(self.stages[0].rows)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, by rank."""
        return tuple(device for stage in self.stages for device in stage.devices)

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    def most_in_flight(self, stage: int) -> int:
        """Micro-batches that a stage has between forward and backward, at most."""
        if self.schedule == "gpipe":
            return self.micro_batches
        return min(len(self.stages) - stage, self.micro_batches, self.in_flight or self.micro_batches)

    def group(self, stage: int) -> tuple[int, ...]:
        """Ranks of the devices of stage ``stage``, in the order in which it lists them."""
        first = sum(len(before.devices) for before in self.stages[:stage])
        return tuple(range(first, first + len(self.stages[stage].devices)))

    def place(self, rank: int) -> tuple[int, int]:
        """The stage that ``rank`` runs, and its index in the stage's device group."""
        for stage in range(len(self.stages)):
            group = self.group(stage)
            if rank in group:
                return stage, group.index(rank)
        raise BadInput(f"rank {rank} is not in a plan of {self.size} devices")

    def check(self, streams: Sequence[Stream]) -> None:
        """Make sure that the stages cover the whole chain ``streams`` of a backbone once, in order.

        Raises:
            BadInput: a layer is left out, comes twice or in the wrong order, or a stream is not the backbone's.
        """
        unknown = {name for stage in self.stages for name in stage.layers} - {stream.name for stream in streams}
        if unknown:
            raise BadInput(
                f"the plan runs stream '{min(unknown)}', which this task does not; it runs "
                + ", ".join(stream.name for stream in streams)
            )
        found = [
            (stream.name, layer)
            for stage in self.stages
            for stream in streams
            for layer in range(*stage.layers.get(stream.name, (0, 0)))
        ]
        wanted = [(stream.name, layer) for stream in streams for layer in range(stream.layers)]
        if found != wanted:
            chain = ", ".join(f"{stream.name} [0, {stream.layers})" for stream in streams)
            stages = "; ".join(map(_slices, self.stages))
            raise BadInput(f"the stages run {stages}; together they must run {chain} once and in order")

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, as it stands in ``plan.json``."""
        return {
            "scheduler": self.scheduler,
            "schedule": self.schedule,
            "in_flight": self.in_flight,
            "weights": self.weights,
            "stages": [
                {
                    "devices": list(stage.devices),
                    "layers": {stream: list(held) for stream, held in stage.layers.items()},
                    "rows": list(stage.rows),
                }
                for stage in self.stages
            ],
            "micro_batch_size": self.micro_batch_size,
            "micro_batches": self.micro_batches,
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "plan.json") -> Self:
        """The plan that `to_json` wrote; ``source`` names it in errors.

        Raises:
            BadInput: it is no plan, naming the field.
        """
        given = dict(data) if isinstance(data, Mapping) else data
        size = given.pop("micro_batch_size", None) if isinstance(given, dict) else None
        try:
            plan: Self = TypeAdapter(cls).validate_json(json.dumps(given))  # in JSON alone a list may be a tuple
        except ValidationError as error:
            first = error.errors()[0]
            raise BadInput(f"{source}: {'.'.join(map(str, first['loc'])) or 'the plan'}: {first['msg']}") from None
        except BadInput as error:
            raise BadInput(f"{source}: {error}") from None
        if size not in (None, plan.micro_batch_size):
            raise BadInput(
                f"{source}: micro_batch_size is {size!r}, but the rows of its stages add up to {plan.micro_batch_size}"
            )
        return plan

    def table(self) -> str:
        """The plan as text for people: one line a device."""
        lines = [("stage", "layers", "device", "rows")]
        for number, stage in enumerate(self.stages, start=1):
            heads = [(str(number), _slices(stage)), *[("", "")] * (len(stage.devices) - 1)]
            lines += [(*head, device, str(rows)) for head, device, rows in zip(heads, stage.devices, stage.rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        limit = "" if self.in_flight is None else f", at most {self.in_flight} in flight"
        held = "" if self.weights == "native" else f", {self.weights} weights"
        text.append(
            f"{self.micro_batches} micro-batches of {self.micro_batch_size} rows, schedule {self.schedule}{limit}{held}"
        )
        return "\n".join(text)


def _slices(stage: StagePlan) -> str:
    return " ".join(f"{stream} [{first}, {last})" for stream, (first, last) in stage.layers.items()) or "none"
