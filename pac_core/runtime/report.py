"""What a run writes down: the adapter, ``metrics.json``, ``plan.json`` and ``report.html``."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from pac_core.adapter_files import write_adapter
from pac_core.config import RunConfig
from pac_core.examples import Example
from pac_core.memory import peak_rss_bytes
from pac_core.model import PacModel
from pac_core.planning.make import BESIDE
from pac_core.report import Content, write
from pac_core.report.outcomes import outcomes
from pac_core.runtime.checkpoint import Progress
from pac_core.runtime.load import Loaded, Source
from pac_core.runtime.recorder import Recorder
from pac_core.runtime.team import Team

NOT_IDENTITY = {"resume", "output", "cache", "generation", "eval", "early_stopping"}
"""Settings that may change between a stopped run and its resumption without changing the weights."""


def single_plan(config: RunConfig, model: PacModel, devices: Sequence[str]) -> dict[str, Any]:
    """The plan of a run whose devices all have the whole model: one stage with every layer."""
    micro = min(config.micro_batch_size or config.batch_size, config.batch_size)
    layers = {stream.name: [0, stream.layers] for stream in model.info.streams if stream.name in model.side.reads}
    return {
        "scheduler": "single",
        "weights": model.info.weights,
        **beside_plan(model),
        "stages": [{"devices": list(devices), "layers": layers}],
        "micro_batch_size": micro,
        "micro_batches": -(-config.batch_size // micro),
    }


def beside_plan(model: PacModel) -> dict[str, Any]:
    """What ``plan.json`` tells beside the plan."""
    return {BESIDE: str(model.info.dtype).removeprefix("torch.")}


def run_identity(config: RunConfig, loaded: Loaded) -> dict[str, Any]:
    """What must agree for a run to resume and end with the same weights: settings, backbone, training data."""
    settings = {key: value for key, value in config.plain().items() if key not in NOT_IDENTITY}
    settings["cache.dtype"] = config.cache.dtype
    return {**settings, "backbone": loaded.model.info.fingerprint, "train data": data_digest(loaded.train)}


def data_digest(examples: Sequence[Example]) -> str:
    """Hex digest of everything that is learnt from: token ids and targets in order."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        for segment in example.segments:
            digest.update(segment.input_ids.tobytes() + b"|")
        target = example.target
        digest.update(target.tobytes() if isinstance(target, np.ndarray) else repr(target).encode())
    return digest.hexdigest()


def epoch_record(progress: Progress, train: Sequence[Example], metrics: dict[str, float]) -> dict[str, Any]:
    """One entry of ``epochs`` in ``metrics.json``: an epoch in which the backbone ran is a fill."""
    return {
        "epoch": progress.epoch,
        "phase": "fill" if progress.backbone_samples else "cached",
        "seconds": progress.seconds,
        "loss": progress.loss_sum / max(progress.step, 1),
        "samples": len(train),
        "tokens": sum(map(len, train)),
        "backbone_samples": progress.backbone_samples,
        "cache_hits": max(len(train) - progress.backbone_samples, 0),
        "bytes_sent": progress.bytes_sent,
        "eval": metrics,
    }


def device_reports(team: Team, model: PacModel, seconds: float, names: Sequence[str]) -> list[dict[str, Any]]:
    """What ``metrics.json`` says of each device; at the leader. All devices call it.

    Args:
        seconds: since this device began; without those that it waited for others it was busy.
        names: of the devices, by rank.
    """
    own = {
        "threads": torch.get_num_threads(),
        "samples_filled": model.reader.counters.backbone_samples,
        "bytes_sent": team.sent,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    times = {"seconds": seconds, "seconds_busy": seconds - team.waited}
    kind = str(model.backbone.device)
    found = team.reports([*own.values(), *times.values()])
    return [
        {"name": name, "kind": kind, **dict(zip(own, map(int, values))), **dict(zip(times, values[len(own) :]))}
        for name, values in zip(names, found)
    ]


def run_metrics(
    loaded: Loaded,
    progress: Progress,
    plan: dict[str, Any],
    final: dict[str, float],
    devices: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The content of ``metrics.json``."""
    return {
        "epochs": list(progress.records),
        "eval": final,
        "eval_before": progress.before or {},
        "peak_rss_bytes": peak_rss_bytes(),
        "trainable_params": loaded.model.trainable(),
        "cache": cache_record(loaded.model),
        "plan": plan,
        "devices": list(devices),
        "versions": versions(),
    }


def cache_record(model: PacModel) -> dict[str, Any]:
    """Sizes of the cache after the run, and entries that were damaged and computed again."""
    cache = model.reader.cache
    assert cache is not None
    stats = cache.stats()
    return {
        "entries": stats.entries,
        "bytes": stats.bytes,
        "bytes_raw": stats.bytes_raw,
        "damaged": cache.counters.damaged,
    }


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("pac-core", "torch", "transformers", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def save(config: RunConfig, model: PacModel, source: Source) -> None:
    """Write the adapter and the tokenizer's files to the output folder."""
    source.tokenizer.save_pretrained(config.output)
    write_adapter(
        config.output,
        model.side.config,
        model.task,
        model.info,
        model.model_name,
        model.state_dict(),
        max_length=config.max_length,
        columns=config.columns,
        chat=source.chat if model.task.generates else None,
    )


def write_report(
    config: RunConfig,
    loaded: Loaded,
    source: Source,
    metrics: dict[str, Any],
    predictions: Sequence[Any],
    recorder: Recorder,
) -> None:
    """Write ``report.html`` to the output folder.

    Args:
        metrics: the content of ``metrics.json``.
        predictions: of the evaluation data, from its first sample on.
        recorder: has seen the run.
    """
    recorder.spent("save")
    content = Content(
        config=config.plain(),
        metrics=metrics,
        task=loaded.task.kind,
        train_samples=len(loaded.train),
        eval_samples=len(loaded.eval),
        phases=recorder.phases,
        device_use=recorder.device_use,
        timeline=recorder.timeline,
        outcomes=outcomes(loaded.task, source.eval_samples, loaded.eval, predictions),
    )
    write(config.output / "report.html", content)
