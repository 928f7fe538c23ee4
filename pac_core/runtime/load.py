"""Step 1 of a run: configuration to model and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from pac_core.backbones import load_backbone
from pac_core.cache import ActivationCache, cache_folder, default_cache_root
from pac_core.config import RunConfig
from pac_core.contracts.backbone import Backbone, BackboneInfo, BackboneSource
from pac_core.contracts.formats import WeightFormat
from pac_core.data import Sample, infer_task, read_samples
from pac_core.encoding import Encoder, load_tokenizer
from pac_core.errors import BadInput, PacError
from pac_core.examples import Example, Task
from pac_core.hardware import multiplies_bfloat16
from pac_core.model import PacModel
from pac_core.planning.make import load_plan
from pac_core.registry import Registry
from pac_core.runtime.stage import Slices
from pac_core.tasks import target_stream

OpenLayers = Callable[[Slices | None], Backbone]
"""Opens the backbone of a run with the layers given, as in `BackboneSource`; None stands for all."""


@dataclass(frozen=True, eq=False)
class Source:
    """The data as text; only the leader of a run has it.

    Attributes:
        tokenizer: the backbone's.
        encoder: turns further samples into examples the same way.
        eval_samples: the evaluation data, for generated answers.
        truncated: samples of training and evaluation data that were cut to the longest length.
        chat: whether the training samples are chats.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    eval_samples: list[Sample]
    truncated: int
    chat: bool


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a run works on.

    Attributes:
        model: backbone, side network, head and cache.
        train, eval: tokenised data; ``eval`` is empty without an evaluation file.
        open_layers: opens the backbone again on this device.
        source: see `Source`; None on a device that another one leads.
    """

    model: PacModel
    train: list[Example]
    eval: list[Example]
    open_layers: OpenLayers
    source: Source | None

    @property
    def task(self) -> Task:
        return self.model.task


def load(config: RunConfig, registry: Registry, layers: Slices | None = None) -> Loaded:
    """Read the data, load the frozen backbone, attach the adapter, open the cache; which cache may depend on a plan
    that is still to be made: then `pac_core.runtime.settle` opens it.

    Cheap checks come first: files are read before weights are.

    Args:
        layers: the slice of the backbone to hold, as in `BackboneSource`; None holds all of it.

    Raises:
        BadInput: whatever is wrong with the configuration, the data or the model.
    """
    registry.get("adapters", config.adapter.name)
    weights = backbone_weights(config)
    samples = read_samples(config.train, columns=config.columns)
    eval_samples = read_samples(config.eval, columns=config.columns) if config.eval else []
    tokenizer = load_tokenizer(config.model)
    backbone = open_backbone(config.model, backbone_dtype(config, samples), registry, layers, None, weights)
    task = choose_task(config, samples, backbone)
    encoder = Encoder(
        tokenizer,
        task,
        backbone.info,
        max_length=config.max_length,
        on_long="error" if config.max_length is None else "truncate",
        decoder_start=backbone.decoder_start(),
    )
    train = encoder(samples)
    truncated = encoder.truncated
    evaluation = encoder(eval_samples)
    truncated += encoder.truncated
    source = Source(tokenizer, encoder, eval_samples, truncated, samples[0].messages is not None)
    model = attach(config, backbone, task, registry, not scheduler_decides(config))
    return Loaded(model, train, evaluation, opener(config.model, backbone.info, registry), source)


def attach(config: RunConfig, backbone: Backbone, task: Task, registry: Registry, caches: bool = True) -> PacModel:
    """A backbone with a fresh side network and, if it ``caches``, the cache of the run.

    Raises:
        BadInput: as `open_cache`, or the adapter does not fit the backbone.
    """
    torch.manual_seed(config.seed)
    side = registry.get("adapters", config.adapter.name)(backbone, config.adapter, target_stream(backbone.info, task))
    cache = open_cache(config, backbone, registry) if caches else None
    return PacModel(backbone, side, task, cache=cache, model_name=config.model)


def backbone_dtype(config: RunConfig, samples: Sequence[Sample]) -> torch.dtype:
    """The backbone's number format that ``config.dtype`` stands for.

    "auto" is bfloat16 where only hidden states that the cache rounds are wanted of it, and where that is faster: then
    its layers do what the cache does anyway. A language model's head works on what is not rounded.
    """
    if config.dtype != "auto":
        found: torch.dtype = getattr(torch, config.dtype)
        return found
    rounded = config.cache.dtype in ("bfloat16", "int8")
    pooled = samples[0].label is not None
    return torch.bfloat16 if rounded and pooled and multiplies_bfloat16(torch.device("cpu")) else torch.float32


def backbone_weights(config: RunConfig) -> WeightFormat:
    """How the backbone's weights are held when a run begins: as configured or, if that is "auto", as the plan says that
    the configuration names.

    Raises:
        BadInput: that plan is for weights held otherwise than the configuration asks for.
    """
    asked = config.backbone_weights
    if config.plan is None:
        return "native" if asked == "auto" else asked
    planned = load_plan(config.plan).weights
    if asked not in ("auto", planned):
        raise BadInput(
            f"{config.plan}: a plan for {planned} weights, but backbone_weights is {asked}; leave it out, then the "
            "plan decides, or make a new plan"
        )
    return planned


def scheduler_decides(config: RunConfig) -> bool:
    """Whether `backbone_weights` is not the last word."""
    return config.backbone_weights == "auto" and config.plan is None and config.scheduler is not None


def open_backbone(
    model: str,
    dtype: torch.dtype,
    registry: Registry,
    layers: Slices | None = None,
    fingerprint: str | None = None,
    weights: WeightFormat = "native",
) -> Backbone:
    """The frozen backbone, or a slice of it; arguments as in `BackboneSource`."""
    held = None if layers is None else dict(layers)
    source = BackboneSource(path=model, layers=held, dtype=dtype, fingerprint=fingerprint, weights=weights)
    return load_backbone(source, registry)


def opener(model: str, info: BackboneInfo, registry: Registry) -> OpenLayers:
    """Opens layers of the backbone at ``model``. Slices are taken to be of the backbone that ``info`` tells of; the
    whole gets a fingerprint of its own, so that a changed one is noticed."""

    def open_layers(layers: Slices | None) -> Backbone:
        fingerprint = None if layers is None else info.fingerprint
        return open_backbone(model, info.dtype, registry, layers, fingerprint, info.weights)

    return open_layers


def warm_up(config: RunConfig, registry: Registry) -> None:
    """Import what opening the model takes, which is seconds, while the leader still reads its data. What is wrong with
    the model is told later."""
    if Path(config.model).is_dir():
        with suppress(PacError):
            open_backbone(config.model, torch.float32, registry, {})


def choose_task(config: RunConfig, samples: Sequence[Sample], backbone: Backbone) -> Task:
    """The task of the configuration or, if ``auto``, of the data."""
    task = infer_task(samples, kind=config.task, info=backbone.info)
    apart = config.pair_encoding == "apart" or (
        config.pair_encoding == "auto" and not backbone.info.stream(target_stream(backbone.info, task)).causal
    )
    return replace(task, apart=task.pair and apart)


def open_cache(config: RunConfig, backbone: Backbone, registry: Registry) -> ActivationCache:
    """The cache of a run: in the folder named, else in the user's cache folder, one for each backbone.

    Raises:
        BadInput: the folder cannot be written, the store is not known, or it belongs to another backbone.
    """
    settings = config.cache
    path: Path | None = settings.dir
    if path is None:
        path = cache_folder(backbone.info, config.model, default_cache_root())
    try:
        return ActivationCache.open(
            settings.store,
            path,
            dtype=settings.dtype,
            budget_bytes=settings.budget_bytes,
            when_full=settings.when_full,
            share=settings.share,
            registry=registry,
        )
    except OSError as error:
        raise BadInput(
            f"cache folder {path} cannot be used: {error.strerror or error}; choose another --cache-dir"
        ) from error
