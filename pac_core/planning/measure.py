"""Measuring this device with a model: what is asked, how it is found, and what is answered. Plain data both ways."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from pac_core.cache import ActivationCache, CacheDtype
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneInfo, tap_indices
from pac_core.contracts.cluster import AS_WRITTEN, Amount, Bytes, Rate
from pac_core.errors import RunFailed
from pac_core.examples import Segment, Task, TaskKind
from pac_core.machine import free_memory, memory_bytes
from pac_core.malloc import return_large_blocks
from pac_core.planning.probe import PassName, Probe, Seconds
from pac_core.planning.profile_file import Point
from pac_core.planning.sample_model import sample_model
from pac_core.registry import Registry
from pac_core.runtime.optimizer import clip, set_rates, united

ROUNDS = 9
"""Most times that each point is come back to; of all its measurements the median counts."""

VISIT_SECONDS = 0.06
VISIT_RUNS = 4
"""How long a point is measured at a time, and how often at most; once in any case."""

FIRST = 0.6
"""Part of the time that the first round may take; points that it has no time for are left out."""

STORE_SECONDS = 1.0
"""How long entries are written, and read, at most; and the bytes of it: """
STORE_BYTES = 64 << 20

UPDATES = 7
SMALL = 1 << 10
LARGE = 1 << 22
"""Numbers in vectors that are updated: few, and more than a processor's cache takes with all that belongs to them."""

Count = Annotated[int, Field(ge=1, le=1 << 20)]


class Request(BaseModel):
    """What a device is to measure.

    Attributes:
        config: the model's ``config.json``.
        layers: of each stream of the model.
        dtype: name of the backbone's number format.
        adapter: the side network.
        task: what is trained.
        outputs: classes, for classification.
        store, cache_dtype: how cache entries are kept.
        points: rows and tokens of micro-batches, the smallest first.
        seconds: that the passes may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    config: dict[str, JsonValue]
    layers: dict[str, Count]
    dtype: str
    adapter: AdapterConfig
    task: TaskKind
    outputs: Count = 2
    store: str = "disk"
    cache_dtype: CacheDtype = "bfloat16"
    points: tuple[tuple[Count, Count], ...] = Field(min_length=1)
    seconds: float = Field(gt=0, le=600)

    @property
    def trained(self) -> Task:
        """The task, with labels."""
        labels = tuple(map(str, range(self.outputs))) if self.task == "classification" else ()
        return Task(self.task, labels)


@dataclass(frozen=True)
class MeasuredPass:
    """The points of one pass; see `pac_core.planning.profile_file.FittedPass`."""

    __pydantic_config__ = AS_WRITTEN

    stream: str
    name: PassName
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Measured:
    """What a device has measured.

    Attributes:
        passes: of a layer of each stream, and of the head.
        step_s, update_bytes_per_s: see `DeviceProfile`.
        write_bytes_per_s, read_bytes_per_s: of cache entries; reads of what the system still has in memory.
        memory_bytes: free main memory.
        threads: for computing.
        seconds: that all of it took.
    """

    __pydantic_config__ = AS_WRITTEN

    passes: tuple[MeasuredPass, ...]
    step_s: Amount
    update_bytes_per_s: Rate
    write_bytes_per_s: Rate
    read_bytes_per_s: Rate
    memory_bytes: Bytes
    threads: Count
    seconds: Amount

    def to_text(self) -> str:
        """As JSON."""
        return TypeAdapter(Measured).dump_json(self).decode()

    @classmethod
    def from_text(cls, text: str, device: str) -> Self:
        """What `to_text` wrote at ``device``.

        Raises:
            RunFailed: it is something else.
        """
        try:
            found: Self = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RunFailed(f"device '{device}' has measured what cannot be: {where}: {first['msg']}") from None
        return found


def measure(request: Request, folder: Path, registry: Registry) -> Measured:
    """Measure this process's device with as many threads as it has.

    Args:
        folder: on the disk where the cache is to lie; it is made if need be, and left as it is found.

    Raises:
        BadInput: the model's configuration cannot be used.
    """
    began = time.perf_counter()
    free = free_memory() or memory_bytes()
    return_large_blocks()  # as stages do
    dtype: torch.dtype = getattr(torch, request.dtype)
    model = sample_model(request.config, request.adapter, request.trained, dtype, registry)
    with ActivationCache.open("memory", dtype=request.cache_dtype, registry=registry) as kept:
        probe = Probe(model, request.layers, kept)
        passes = measure_passes(probe.run, request.points, request.seconds)
    write, read = store_rates(request, model.info, model.side.target, folder, registry)
    step, update = update_rates()
    took = time.perf_counter() - began
    return Measured(passes, step, update, write, read, free, torch.get_num_threads(), took)


def measure_passes(
    run: Callable[[int, int], Seconds],
    points: Sequence[tuple[int, int]],
    seconds: float,
) -> tuple[MeasuredPass, ...]:
    """Measure points round after round, so that a moment in which the device was busy with something else spoils none
    of them, for as long as there is time. The first point is always measured.

    Args:
        run: measures one, given rows and tokens.
        points: the smallest first.
    """
    run(*points[0])  # what runs for the first time takes longer
    began = time.perf_counter()
    taken: dict[tuple[int, int], list[Seconds]] = {}
    expected = 0.0
    for point, following in zip(points, [*points[1:], points[-1]]):
        if time.perf_counter() - began + 2 * expected > FIRST * seconds and taken:
            break
        run(*point)
        taken[point], fastest = _visit(partial(run, *point))
        expected = fastest * following[0] * following[1] / (point[0] * point[1])
    round_s = time.perf_counter() - began
    for _ in range(ROUNDS - 1):
        if time.perf_counter() - began + round_s > seconds:
            break
        for point, found in taken.items():
            found += _visit(partial(run, *point))[0]
    return _medians(taken)


def _visit(run: Callable[[], Seconds]) -> tuple[list[Seconds], float]:
    """What some runs have found, and the seconds of the fastest."""
    found, lasted = list[Seconds](), list[float]()
    while not found or (len(found) < VISIT_RUNS and sum(lasted) < VISIT_SECONDS):
        began = time.perf_counter()
        found.append(run())
        lasted.append(time.perf_counter() - began)
    return found, min(lasted)


def _medians(taken: Mapping[tuple[int, int], Sequence[Seconds]]) -> tuple[MeasuredPass, ...]:
    names = next(iter(taken.values()))[0]
    return tuple(
        MeasuredPass(
            stream,
            name,
            tuple(
                Point(rows, tokens, statistics.median(each[stream, name] for each in found))
                for (rows, tokens), found in taken.items()
            ),
        )
        for stream, name in names
    )


def store_rates(
    request: Request, info: BackboneInfo, stream: str, folder: Path, registry: Registry
) -> tuple[float, float]:
    """Bytes of entries that are written, and read, in a second, with all that comes with it.

    Args:
        info: of the sample; entries have the taps of all layers of ``stream``.
    """
    _, tokens = request.points[len(request.points) // 2]
    taps = tap_indices(request.layers[stream], request.adapter.tap_every)
    entry = torch.randn(len(taps), tokens, info.hidden_size)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".pac-profile-", dir=folder) as place,
        ActivationCache.open(request.store, place, dtype=request.cache_dtype, registry=registry) as cache,
    ):
        bound = cache.bind(info, {stream: taps})
        size = bound.codec.payload_bytes(len(taps), tokens, info.hidden_size)
        segments = [_segment(stream, number, tokens) for number in range(max(STORE_BYTES // size, 2))]
        written, write_s = _timed(segments, lambda one: bound.put(bound.keys([one]), [entry]))
        room = torch.empty(len(taps), tokens, info.hidden_size, dtype=bound.dtype)
        read, read_s = _timed(written, lambda one: bound.load(bound.keys([one]), [tokens], room))
    return len(written) * size / write_s, len(read) * size / read_s


def _segment(stream: str, number: int, tokens: int) -> Segment:
    return Segment(stream, torch.full((tokens,), number, dtype=torch.int32).numpy())


T = TypeVar("T")


def _timed(items: Sequence[T], work: Callable[[T], Any]) -> tuple[Sequence[T], float]:
    """The first items, each worked on, and the seconds that it took."""
    began, done = time.perf_counter(), list[T]()
    while len(done) < len(items) and time.perf_counter() - began < STORE_SECONDS:
        work(items[len(done)])
        done.append(items[len(done)])
    return done, time.perf_counter() - began


def update_rates() -> tuple[float, float]:
    """Seconds of a small optimiser step, and bytes of gradients that a large one works off in a second."""
    small, large = (_update_seconds(size) for size in (SMALL, LARGE))
    return small, 4 * (LARGE - SMALL) / max(large - small, 1e-9)


def _update_seconds(size: int) -> float:
    """Seconds of clearing, clipping and applying gradients of so many numbers, as a step does."""
    vector = united([torch.nn.Parameter(torch.zeros(size))], torch.ones(size))
    optimizer = torch.optim.AdamW([{"params": [vector], "lr": 1e-3, "peak": 1e-3}], fused=True)
    step = partial(_update, optimizer)
    step()
    return statistics.median(_timed([None], lambda _: step())[1] for _ in range(UPDATES))


def _update(optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    clip(optimizer, 1.0)
    set_rates(optimizer, 1.0)
    optimizer.step()
