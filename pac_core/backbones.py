"""From a folder, a hub id or a live model to a `Backbone`: which plugin serves it, and which files it is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from pac_core.contracts.backbone import Backbone, BackboneInfo, BackboneSource
from pac_core.errors import BadInput
from pac_core.registry import Registry

CONFIG = "config.json"

UNREAD = "unread"
"""Fingerprint of a model whose weights nobody has read."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def load_backbone(source: BackboneSource, registry: Registry) -> Backbone:
    """Build the backbone that ``source`` describes with the plugin registered for its ``model_type``.

    Example:
        >>> backbone = load_backbone(BackboneSource("models/t5-base"), Registry())

    Raises:
        UnknownPlugin: no plugin serves this architecture; the text lists those that are.
        BadInput: the source is neither a path nor a model, has no readable ``config.json``, or cannot be served.
    """
    config = source_config(source)
    where = source_name(source)
    refuse_unservable(config, where)
    factory = registry.get("backbones", config["model_type"])
    backbone = cast(Backbone, factory(source))
    if backbone.info.weights != source.weights:
        raise BadInput(f"{where}: its plugin does not hold weights as {source.weights}; use native ones")
    return backbone


def describe(path: str, registry: Registry, dtype: torch.dtype = torch.float32) -> BackboneInfo:
    """The facts of a model from its ``config.json`` alone: no weights are read, nor need be there. The fingerprint is
    none.

    Raises:
        UnknownPlugin, BadInput: as `load_backbone`.
    """
    from transformers import AutoConfig, AutoModel

    told = source_config(BackboneSource(path))
    refuse_unservable(told, path)
    registry.get("backbones", told["model_type"])
    file = find_file(path, CONFIG)
    assert file is not None
    try:
        config = AutoConfig.from_pretrained(file.parent)
        with torch.device("meta"):
            model = AutoModel.from_config(config).to(dtype)
    except Exception as error:  # transformers raises several kinds for fields it does not accept
        raise BadInput(f"{file}: transformers does not accept this configuration ({error})") from error
    return load_backbone(BackboneSource(model=model, fingerprint=UNREAD), registry).info


def source_name(source: BackboneSource) -> str:
    """How errors name ``source``: its path, or the class of its model."""
    return str(source.path) if source.model is None else type(source.model).__name__


def source_config(source: BackboneSource) -> dict[str, Any]:
    """The transformers configuration of ``source`` as plain data; it always has ``model_type``.

    Raises:
        BadInput: ``config.json`` is missing or unreadable or does not say what the model is.
    """
    if (source.path is None) == (source.model is None):
        raise BadInput("a backbone comes either from a path or from a model; give exactly one of the two")
    if source.model is not None:
        return _live_config(source.model)
    assert source.path is not None
    file = find_file(source.path, CONFIG)
    if file is None:
        raise BadInput(f"{source.path}: no {CONFIG}; {_way_out(source.path)}")
    return _read_config(file)


def find_file(path: str | Path, name: str) -> Path | None:
    """File ``name`` of the checkpoint at ``path``: in that folder, or downloaded from the hub (that one file only).

    Returns None if the checkpoint has no such file, or if it is not in the hub's cache and the hub cannot be reached.

    Raises:
        BadInput: ``path`` is neither a folder nor a hub id that exists.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.exists() or folder.is_absolute() or str(path).startswith("."):
        raise BadInput(f"{path}: not a folder; give the folder that holds {CONFIG} and *.safetensors, or a hub id")
    return _from_hub(str(path), name)


def local_folder(path: str | Path) -> Path | None:
    """The folder on this device with the checkpoint at ``path``, a folder or hub id; None if there is none. No hub is
    asked."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(str(path), CONFIG)
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def refuse_unservable(config: Mapping[str, Any], where: str) -> None:
    """Raise BadInput for what no backbone can serve yet: mixtures of experts and quantised weights."""
    experts = [name for name in EXPERTS if (config.get(name) or 0) > 1]
    if experts:
        raise BadInput(
            f"{where}: a mixture of experts ({experts[0]} = {config[experts[0]]}) is not supported, since its layers "
            "cannot be read tensor by tensor; use a dense model"
        )
    if config.get("quantization_config"):
        raise BadInput(
            f"{where}: the checkpoint is already quantised (quantization_config in {CONFIG}); "
            "use the original float32, bfloat16 or float16 checkpoint"
        )


def _live_config(model: Any) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if not getattr(config, "model_type", None):
        raise BadInput(f"{type(model).__name__} is not a transformers model: it has no config.model_type")
    return {**cast(Any, config).to_dict(), "model_type": cast(Any, config).model_type}


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: not readable as JSON ({error}); copy or download it again") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise BadInput(f"{file}: has no model_type; it must be the configuration of a transformers model")
    return config


def _from_hub(repository: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise BadInput(f"{repository}: neither a local folder nor a model on the Hugging Face hub") from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{repository}: {name} could not be fetched ({error}); {_way_out(repository)}") from error


def _way_out(path: str | Path) -> str:
    if Path(path).expanduser().is_dir():
        return "save the model there with save_pretrained, or give another folder"
    return (
        "there is no such local folder, and the hub does not have it or cannot be reached; give a folder with the model"
    )
