"""Between steps 3 and 4 of a run: what a plan has to say of what was loaded before it was made."""

from __future__ import annotations

from dataclasses import replace

import torch

from pac_core.backbones import load_backbone
from pac_core.config import RunConfig
from pac_core.contracts.backbone import Backbone, BackboneSource
from pac_core.contracts.formats import WeightFormat
from pac_core.contracts.scheduler import Plan
from pac_core.model import PacModel
from pac_core.registry import Registry
from pac_core.runtime.crew import has_stages
from pac_core.runtime.load import Loaded, open_cache, opener


def settle(config: RunConfig, loaded: Loaded, plan: Plan | None, registry: Registry) -> Loaded:
    """What was loaded, with its cache, on a backbone whose weights are held as the plan says.

    Raises:
        BadInput: as `open_cache`.
    """
    before = loaded.model
    if before.cache is not None:
        return loaded
    backbone = before.backbone
    if plan is not None and plan.weights != before.info.weights:
        backbone = _held_as(plan.weights, config, backbone, registry)
    cache = open_cache(config, backbone, registry)
    with torch.random.fork_rng(devices=[]):  # its first weights are replaced
        model = PacModel(backbone, before.side, before.task, cache=cache, model_name=config.model)
    model.load_state_dict(before.state_dict())
    return replace(loaded, model=model, open_layers=opener(config.model, backbone.info, registry))


def _held_as(weights: WeightFormat, config: RunConfig, backbone: Backbone, registry: Registry) -> Backbone:
    source = BackboneSource(
        config.model,
        layers={} if has_stages(config) else None,
        dtype=backbone.info.dtype,
        digests=backbone.digests or None,  # spares reading the checkpoint again
        weights=weights,
    )
    backbone.release(keep_head=False)
    return load_backbone(source, registry)
