"""A few layers of a model with random weights, made of its configuration alone: what is timed in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pac_core.backbones import load_backbone
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER, BackboneSource
from pac_core.errors import BadInput
from pac_core.examples import IGNORE, Example, Segment, Task
from pac_core.model import PacModel
from pac_core.registry import Registry
from pac_core.tasks import target_stream

LAYERS = 3
"""Of each stream that are made."""

NARROW = 1024
"""Hidden size up to which so many are made; of wider models one fewer."""

VOCABULARY = 8192
"""Most tokens that it knows: a real table would take memory that a device may not need, since another one has it."""

COUNTS = {
    ENCODER: ("encoder_layers", "num_layers", "num_hidden_layers", "n_layer"),
    DECODER: ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer"),
}
"""Where configurations say how many layers a stream has; the first that is there counts."""


def sample_model(
    config: Mapping[str, Any], adapter: AdapterConfig, task: Task, dtype: torch.dtype, registry: Registry
) -> PacModel:
    """A model of the shapes of ``config``, a ``config.json``, with few layers and a small vocabulary, in training mode.

    Raises:
        BadInput: transformers does not accept the configuration, no plugin serves it, or it does not say how many
            layers there are.
    """
    small = _small(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = _class_for(task, small).from_config(small).to(dtype)
        backbone = load_backbone(BackboneSource(model=base), registry)
        chosen = adapter.model_copy(update={"init": "random"})
        side = registry.get("adapters", adapter.name)(backbone, chosen, target_stream(backbone.info, task))
        model = PacModel(backbone, side, task)
    model.calibrated.fill_(True)
    return model.train()


def sample_examples(model: PacModel, rows: int, tokens: int, seed: int = 0) -> list[Example]:
    """Rows of so many random tokens in each stream that the task runs, with something to learn."""
    rng = np.random.default_rng(seed)
    limit = model.info.vocab_size

    def ids() -> Any:
        return rng.integers(min(4, limit - 1), limit, tokens).astype(np.int32)

    return [_example(model, ids) for _ in range(rows)]


def _example(model: PacModel, ids: Any) -> Example:
    stream = model.side.target
    context = Segment(ENCODER, ids()) if model.info.stream(stream).cross else None
    segment = Segment(stream, ids(), None, context)
    segments = (segment,) if context is None else (context, segment)
    if model.task.generates:
        return Example(segments, np.append(segment.input_ids[1:], IGNORE).astype(np.int64))
    return Example(segments, 0 if model.task.kind == "classification" else 0.0)


def _small(config: Mapping[str, Any]) -> Any:
    """The configuration of the sample, parsed."""
    given = _parsed(config).to_dict()
    fields = {_field(given, stream) for stream in COUNTS if stream == DECODER or given.get("is_encoder_decoder")}
    most = LAYERS if _parsed(config).hidden_size <= NARROW else LAYERS - 1
    counts = {name: min(given[name], most) for name in fields}
    longest = max(counts.values())
    kinds = {name: value[:longest] for name, value in given.items() if name == "layer_types" and value}
    known = min(given["vocab_size"], VOCABULARY)
    ids = {n: 0 for n, v in given.items() if n.endswith("_token_id") and isinstance(v, int) and v >= known}
    return type(_parsed(config))(**{**given, **counts, **kinds, **ids, "vocab_size": known})


def _parsed(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    given = dict(config)
    try:
        return AutoConfig.for_model(given.pop("model_type"), **given)
    except Exception as error:  # transformers raises several kinds for fields it does not accept
        raise BadInput(f"transformers does not accept the model's configuration ({error})") from error


def _field(given: Mapping[str, Any], stream: str) -> str:
    """The field with the number of a stream's layers."""
    for name in COUNTS[stream]:
        if isinstance(given.get(name), int):
            return name
    raise BadInput(
        f"the model's configuration does not say how many layers its {stream} has: {', '.join(COUNTS[stream])}"
    )


def _class_for(task: Task, config: Any) -> Any:
    """The class that has the head the task needs."""
    import transformers as hf

    if not task.generates:
        return hf.AutoModel
    return hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
