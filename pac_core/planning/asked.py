"""What is to be planned, from a model's configuration or a measured profile, and what a run is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pac_core.backbones import load_backbone
from pac_core.config import RunConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER, BackboneInfo, BackboneSource
from pac_core.contracts.cluster import Job, Profile
from pac_core.errors import BadInput
from pac_core.planning.profile import analytic_profile
from pac_core.planning.profile_file import ProfileFile
from pac_core.planning.simulate import LENGTH
from pac_core.registry import Registry

BATCH = int(RunConfig.model_fields["batch_size"].default)
"""Samples of an optimiser step where nobody says."""


@dataclass(frozen=True)
class Side:
    """What is trained, where no profile was measured.

    Attributes:
        adapter: the side network.
        dtype: name of the backbone's number format.
        generates: whether the answer is text; if None it is wherever the model has a decoder.
    """

    adapter: AdapterConfig
    dtype: str = "float32"
    generates: bool | None = None


def model_profile(model: str, side: Side, registry: Registry) -> Profile:
    """The costs of a model's layers, from its configuration alone.

    Raises:
        BadInput: there is no such model, or it does not generate.
    """
    source = BackboneSource(model, layers={}, dtype=getattr(torch, side.dtype))
    info = load_backbone(source, registry).info
    target = _target(info, side.generates)
    return analytic_profile(info, side.adapter, target, head=side.generates is not False and target == DECODER)


def job_of(given: Mapping[str, Any], measured: Job | None = None) -> Job:
    """The work of an optimiser step.

    Args:
        given: ``batch_size``, ``micro_batch_size`` and ``tokens`` of a sample; None where they are left open.
        measured: stands for what is left open, as a profile was made for it.
    """
    made = measured or Job(BATCH, None, LENGTH, LENGTH)
    tokens = given["tokens"]
    return Job(
        given["batch_size"] or made.batch_size,
        given["micro_batch_size"] or made.micro_batch_size,
        tokens or made.mean_length,
        tokens or made.max_length,
        made.dtype,
        {} if tokens else made.lengths,
    )


def check_model(found: ProfileFile, path: Path, model: str) -> None:
    """Make sure that a profile is of a model.

    Raises:
        BadInput: it is of another one.
    """
    one, other = Path(found.model).expanduser(), Path(model).expanduser()
    same = one.exists() and other.exists() and one.samefile(other)
    if found.model != model and not same:
        raise BadInput(
            f"{path}: a profile of {found.model}, not of {model}; give --model {found.model}, or make another one with "
            "pac profile"
        )


def _target(info: BackboneInfo, generates: bool | None) -> str:
    """The stream that the side network ends with, as `pac_core.tasks.target_stream` chooses it."""
    names = [stream.name for stream in info.streams]
    if generates and DECODER not in names:
        raise BadInput(f"{info.model_type} is an encoder and writes no text; leave --task out")
    if generates is False and ENCODER in names:
        return ENCODER
    return names[-1]
