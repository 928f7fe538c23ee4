"""What `pac plan` is asked, and its answer: a plan for a cluster file and, if something is supposed, one for that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pac_core.backbones import describe
from pac_core.cluster import Cluster as ClusterFile
from pac_core.config import RunConfig
from pac_core.contracts.backbone import DECODER
from pac_core.contracts.cluster import Cluster, Job, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput
from pac_core.examples import Task
from pac_core.planning.cluster_file import NO_MEASURES, cluster_to_plan
from pac_core.planning.profile import analytic_profile
from pac_core.planning.profile_file import ProfileFile, read_profile
from pac_core.planning.proposal import Proposal, propose
from pac_core.planning.simulate import LENGTH
from pac_core.planning.supposed import Change, supposed
from pac_core.planning.work import Fill, Work
from pac_core.registry import Registry
from pac_core.tasks import target_stream

OF_THE_PROFILE = ("task", "adapter", "dtype")
"""Settings that a measured profile was made with."""


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Attributes:
        config: the run, as far as it is given; its data are not read.
        cluster: the cluster file; the devices of the profile if None.
        profile: file that `pac profile` wrote.
        tokens: of a sample.
        samples: of an epoch.
        change: what is supposed to be different.
    """

    config: RunConfig
    cluster: Path | None
    profile: Path | None
    tokens: int | None
    samples: int
    change: Change


@dataclass(frozen=True)
class Answer:
    """A plan for the cluster as it is, and for what is supposed of it.

    Attributes:
        found: as it is; None if nothing fits, which is an answer only where a change helps.
        reason: why nothing does.
        changed: with the change; None without one.
    """

    found: Proposal | None
    reason: str = ""
    changed: Proposal | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as fast a run is with the change."""
        if self.found is None or self.changed is None:
            return None
        return self.found.chosen.seconds / self.changed.chosen.seconds

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        told = {"plan": None, "reason": self.reason} if self.found is None else self.found.to_json()
        return told if self.changed is None else {**told, "changed": self.changed.to_json(), "ratio": self.ratio}


def answer(asked: Question, registry: Registry) -> Answer:
    """Plan what is asked.

    Raises:
        UnknownPlugin: there is no such scheduler.
        BadInput: a file, model, device or card that cannot be used, or nothing fits, with the change if there is one.
    """
    file = None if asked.cluster is None else ClusterFile.load(asked.cluster)
    measured = None if asked.profile is None else _measured(asked, asked.profile)
    cluster = NO_MEASURES if measured is None else measured.cluster
    if file is not None:
        cluster = _cluster(asked, file, cluster)
    elif measured is None:
        raise BadInput("nothing says which devices there are; give --cluster FILE or --profile FILE")
    profile = _profile(asked.config, registry) if measured is None else measured.profile
    job = _job(asked, None if measured is None else measured.job)
    work = _work(asked)

    def proposal(there: Cluster, before: Plan | None = None) -> Proposal:
        return propose(profile, there, job, work, registry, asked.config.scheduler, before)

    if asked.change.empty:
        return Answer(proposal(cluster))
    then = supposed(cluster, asked.change)
    try:
        found, reason = proposal(cluster), ""
    except BadInput as error:
        found, reason = None, str(error)
    return Answer(found, reason, proposal(then, None if found is None else found.chosen.plan))


def _cluster(asked: Question, file: ClusterFile, measured: Cluster) -> Cluster:
    """The devices of a cluster file, which errors name."""
    try:
        return cluster_to_plan(file, measured)
    except BadInput as error:
        raise BadInput(f"{asked.cluster}: {error}") from None


def _work(asked: Question) -> Work:
    """What the run does, with the defaults of ``pac finetune``."""
    config = asked.config
    entries = config.cache.dtype
    if entries == "float64":
        raise BadInput("cache.dtype = 'float64': it is for tests and not simulated; choose float32, bfloat16 or int8")
    fill: Fill = "train-while-fill" if config.fill == "train-while-fill" else "prefill"
    return Work.of_run(asked.samples, config.epochs, fill, entries)


def _profile(config: RunConfig, registry: Registry) -> Profile:
    """The costs of a model's layers, from its configuration alone. Where nothing says what is predicted it is text, if
    the model has a decoder."""
    registry.get("adapters", config.adapter.name)
    dtype = getattr(torch, "float32" if config.dtype == "auto" else config.dtype)
    info = describe(config.model, registry, dtype)
    writes = any(stream.name == DECODER for stream in info.streams)
    task = Task(config.task if config.task != "auto" else "causal-lm" if writes else "classification")
    return analytic_profile(info, config.adapter, target_stream(info, task), head=task.generates)


def _measured(asked: Question, path: Path) -> ProfileFile:
    """The profile in a file, which must be of the model and says itself what is trained."""
    found, model = read_profile(path), asked.config.model
    one, other = Path(found.model).expanduser(), Path(model).expanduser()
    if found.model != model and not (one.exists() and other.exists() and one.samefile(other)):
        raise BadInput(
            f"{path}: a profile of {found.model}, not of {model}; give --model {found.model}, or make another one with "
            "pac profile"
        )
    given = [name for name in OF_THE_PROFILE if name in asked.config.model_fields_set]
    if given:
        raise BadInput(f"{given[0]}: {path} was measured with one of its own; leave that or --profile out")
    return found


def _job(asked: Question, measured: Job | None) -> Job:
    """The work of an optimiser step; what is left open is as it was measured with."""
    config, tokens = asked.config, asked.tokens
    made = measured or Job(config.batch_size, None, LENGTH, LENGTH)
    return Job(
        config.batch_size if "batch_size" in config.model_fields_set else made.batch_size,
        config.micro_batch_size or made.micro_batch_size,
        tokens or made.mean_length,
        tokens or made.max_length,
        made.dtype if config.dtype == "auto" else config.dtype,
        {} if tokens else made.lengths,
    )
