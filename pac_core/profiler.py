"""Measuring devices with a model, for planning: all of them at once, and then the links between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from pac_core.backbones import describe, source_config
from pac_core.cluster import Cluster as ClusterFile
from pac_core.cluster import is_cluster
from pac_core.config import RunConfig
from pac_core.contracts.backbone import BackboneInfo, BackboneSource
from pac_core.contracts.cluster import Cluster, Job, Link, Profile
from pac_core.errors import TransportError
from pac_core.examples import Task, TaskKind
from pac_core.hardware import multiplies_bfloat16
from pac_core.planning.fit import fit_device
from pac_core.planning.make import FAR, NEAR, device_names
from pac_core.planning.measure import Request, measure
from pac_core.planning.profile import analytic_profile
from pac_core.planning.profile_file import ProfileFile, versions_here
from pac_core.planning.sample_model import sample_model
from pac_core.registry import Registry
from pac_core.runtime.cluster_crew import ClusterCrew
from pac_core.runtime.crew import Crew, device_count
from pac_core.runtime.profiling import Answer, Say, cache_disk, lead
from pac_core.tasks import target_stream

ROWS = (1, 2, 4, 8, 16)
TOKENS = (16, 32, 64, 128)
"""Of the micro-batches that are measured, as far as the longest sample allows; its length is measured as well."""

MOST_TOKENS = 2048
"""Of a micro-batch: beyond, time grows as before."""

ANY_TASK = Task("regression")
"""What a sample of a model is made for whose task is not known yet."""

NO_DATA = "-"
"""Stands for the training data, which are not read, in a configuration."""


@dataclass(frozen=True)
class Found:
    """What devices have answered.

    Attributes:
        names: by rank.
        answers: likewise.
        memory: bytes that a run may take, by name, where they are given rather than measured.
        processes: of which a device's free memory is shared.
        default: links that were not measured.
    """

    names: list[str]
    answers: list[Answer]
    memory: Mapping[str, int]
    processes: int
    default: Link

    def budget(self, rank: int) -> int:
        """Bytes that a run may take on a device."""
        free = self.answers[rank].measured.memory_bytes // self.processes
        return self.memory.get(self.names[rank], free)


@dataclass(frozen=True)
class Profiler:
    """Measures the devices of a configuration.

    Attributes:
        config: model, adapter, cache, batch, longest sample and devices; its data are not read.
        seconds: that the passes may take on each device.
        registry: the plugins.
        say: told what is being done.
    """

    config: RunConfig
    seconds: float
    registry: Registry
    say: Say = lambda text: None

    def run(self) -> ProfileFile:
        """Measure all devices at once, and then the links between them.

        Raises:
            BadInput: the model cannot be used, or the devices cannot be what was asked for.
            RunFailed: a device is gone, or cannot be measured.
        """
        request, small, whole = self.request()
        found = self._found(request)
        sample = _profile(small, request)
        fitted = [
            fit_device(name, answer.measured, sample, found.budget(rank))
            for rank, (name, answer) in enumerate(zip(found.names, found.answers))
        ]
        names, longest = found.names, max(tokens for _, tokens in request.points)
        links = {(names[i], names[j]): link for i, each in enumerate(found.answers) for j, link in each.links.items()}
        return ProfileFile(
            model=self.config.model,
            profile=_profile(whole, request),
            cluster=Cluster(tuple(device for device, _ in fitted), links, found.default),
            job=Job(self.config.batch_size, self.config.micro_batch_size, float(longest), longest, request.dtype),
            fits={device.name: fits for device, fits in fitted},
            versions=versions_here(),
        )

    def request(self) -> tuple[Request, BackboneInfo, BackboneInfo]:
        """What each device is asked to measure, and facts of the sample of the model that it times and of the whole.

        Raises:
            BadInput: the model cannot be used.
        """
        config = self.config
        given = source_config(BackboneSource(config.model))
        whole = describe(config.model, self.registry)
        small = sample_model(given, config.adapter, ANY_TASK, torch.float32, self.registry).info
        longest = min(config.max_length or TOKENS[-1], small.max_tokens or MOST_TOKENS)
        task = _task(config, small)
        target_stream(small, Task(task))  # or say that the model cannot do it, before anyone is asked
        dtype = _dtype(config, task)
        request = Request(
            config=given,
            layers={stream.name: stream.layers for stream in whole.streams},
            dtype=dtype,
            adapter=config.adapter,
            task=task,
            store=config.cache.store,
            cache_dtype=config.cache.dtype,
            points=grid(longest),
            seconds=self.seconds,
        )
        number: torch.dtype = getattr(torch, dtype)
        return request, replace(small, dtype=number), replace(whole, dtype=number)

    def _found(self, request: Request) -> Found:
        """What the devices answer; errors as in `run`."""
        config, registry = self.config, self.registry
        if is_cluster(config.devices):
            return self._from_cluster(request, ClusterFile.load(config.devices))
        count = device_count(config)
        names = device_names(count)
        if count > 1:
            with Crew(config, count, registry, "profile") as crew:
                return Found(names, self._lead(crew, request, names), {}, count, NEAR)
        self.say(f"measuring this device for {request.seconds:.0f} s and a little more")
        return Found(names, [Answer(measure(request, cache_disk(config), registry), {})], {}, 1, NEAR)

    def _from_cluster(self, request: Request, cluster: ClusterFile) -> Found:
        with ClusterCrew(self.config, cluster, self.registry, "profile") as crew:
            names = [device.name for device in crew.devices.devices]
            given = {name: cluster.device(name).memory for name in names}
            memory = {name: size for name, size in given.items() if size is not None}
            return Found(names, self._lead(crew, request, names), memory, 1, FAR)

    def _lead(self, crew: Crew | ClusterCrew, request: Request, names: list[str]) -> list[Answer]:
        try:
            return lead(crew.connect(), request, cache_disk(self.config), names, self.registry, self.say)
        except TransportError as error:
            raise crew.explain(error) from error


def grid(longest: int) -> tuple[tuple[int, int], ...]:
    """Rows and tokens of the micro-batches that are measured, the smallest first."""
    lengths = sorted({*(tokens for tokens in TOKENS if tokens < longest), longest})
    points = [(rows, tokens) for rows in ROWS for tokens in lengths if rows == 1 or rows * tokens <= MOST_TOKENS]
    return tuple(sorted(points, key=lambda point: (point[0] * point[1], point)))


def _task(config: RunConfig, info: BackboneInfo) -> TaskKind:
    """The task that is asked for, or the usual one of the model's kind."""
    if config.task != "auto":
        return config.task
    if info.is_encoder_decoder:
        return "seq2seq"
    return "causal-lm" if info.streams[0].causal else "classification"


def _dtype(config: RunConfig, task: TaskKind) -> str:
    """The backbone's number format, as `pac_core.runtime.load.backbone_dtype` chooses it."""
    if config.dtype != "auto":
        return config.dtype
    half = config.cache.dtype in ("bfloat16", "int8") and task in ("classification", "regression")
    return "bfloat16" if half and multiplies_bfloat16(torch.device("cpu")) else "float32"


def _profile(info: BackboneInfo, request: Request) -> Profile:
    task = request.trained
    return analytic_profile(
        info,
        request.adapter,
        target_stream(info, task),
        head=task.generates,
    )
