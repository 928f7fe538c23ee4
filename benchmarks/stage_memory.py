"""Peak memory of the workers of a pipeline, beside what `pac_core.planning.stage_memory` predicts.

    python benchmarks/stage_memory.py [--stages 2 4] [--rows 8] [--tokens 128] [--micro-batches 8] [--weights int8]
        [--json]

A BERT of 12 layers and width 768 with random weights is written to a temporary folder; each worker, a process of its
own, loads its slice and makes three optimiser steps, its taps going to a cache on disk in bfloat16. What is measured is
the largest resident memory since the imports and one step of a tiny model, which bring the program's own code and
buffers into memory, above what was resident then.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from pac_core.backbones import load_backbone
from pac_core.cache import ActivationCache
from pac_core.config import OptimizerConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import ENCODER, BackboneSource
from pac_core.contracts.formats import WeightFormat
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.examples import Example, Segment, Task
from pac_core.malloc import return_large_blocks
from pac_core.model import PacModel
from pac_core.planning.stage_memory import stage_memory
from pac_core.registry import Registry
from pac_core.runtime.optimizer import make_optimizer
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.stage import Stage, bind_share, cut_model
from pac_plugins.transports import make_local

LAYERS = 12
ADAPTER = AdapterConfig(init="random")
TASK = Task("classification", ("a", "b"))

_spawn = multiprocessing.get_context("spawn")  # a fresh interpreter each, as a worker on a device has


Prepare = Callable[[Path], None]
Measure = Callable[[Path, Plan, int], list[dict[str, Any]]]


def rows(count: int, tokens: int) -> list[Example]:
    """Texts of a length with a class."""
    rng = np.random.default_rng(0)
    types = np.zeros(tokens, np.int8)
    return [
        Example((Segment(ENCODER, rng.integers(999, 9999, tokens).astype(np.int32), types),), i % 2)
        for i in range(count)
    ]


def even_plan(stages: int, micro_rows: int, micro_batches: int, weights: WeightFormat = "native") -> Plan:
    """Stages of as many layers each."""
    each = LAYERS // stages
    slices = [{ENCODER: (i * each, (i + 1) * each)} for i in range(stages)]
    made = tuple(StagePlan(s, (str(i),), (micro_rows,)) for i, s in enumerate(slices))
    return Plan(made, micro_batches, weights=weights)


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def work(rank: int, plan: Plan, folder: str, tokens: int, pipe: Connection) -> None:
    """A worker; sends its peak above the baseline, and the prediction."""
    torch.set_num_threads(1)
    return_large_blocks()
    train(Path(folder) / "tiny", 0, even_plan(1, 1, 1), [Peer(f"{folder}/alone {rank}")], 8, f"{folder}/{rank} tiny")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    baseline = resident("VmRSS")
    peers = [Peer(f"{folder}/{i}") for i in range(plan.size)]
    info = train(Path(folder) / "model", rank, plan, peers, tokens, f"{folder}/{rank} share")
    peak = resident("VmHWM") - baseline
    pipe.send((peak, asdict(stage_memory(info, ADAPTER, plan, rank, tokens))))


def train(path: Path, rank: int, plan: Plan, peers: list[Peer], tokens: int, share: str) -> Any:
    """Three steps of one device; returns the backbone's facts."""
    layers = plan.stages[rank].layers
    registry = Registry()
    with make_local(TransportOptions(rank=rank, peers=peers, timeout=280)) as transport:
        backbone = load_backbone(BackboneSource(path=path, layers=dict(layers), weights=plan.weights), registry)
        side = registry.get("adapters", "parallel")(backbone, ADAPTER, ENCODER)
        model = PacModel(backbone, side, TASK).train()
        with ActivationCache.open("disk", share) as cache:
            stage = Stage(cut_model(model, layers), layers, bind_share(cache, model, layers))
            pipeline, optimizer = Pipeline(plan, stage, transport), make_optimizer(model, OptimizerConfig())
            batch = rows(plan.micro_batches * plan.micro_batch_size, tokens)
            for _ in range(3):
                pipeline.step(optimizer, len(batch), batch if rank == 0 else ())
            transport.barrier()
    return backbone.info


def write(folder: Path) -> None:
    """The model, and a tiny one of as many layers."""
    for name, width, vocabulary in (("model", 768, 30522), ("tiny", 64, 10000)):
        config = hf.BertConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=width // 64,
            num_hidden_layers=LAYERS,
            vocab_size=vocabulary,
        )
        hf.BertModel(config, add_pooling_layer=False).save_pretrained(folder / name)


def measure(folder: Path, plan: Plan, tokens: int) -> list[dict[str, Any]]:
    """Peak and prediction of every worker, in bytes."""
    pipes = [_spawn.Pipe(duplex=False) for _ in range(plan.size)]
    processes = [
        _spawn.Process(target=work, args=(rank, plan, str(folder), tokens, pipe[1])) for rank, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    found = [pipe[0].recv() for pipe in pipes]
    for process in processes:
        process.join()
    return [
        {"stages": plan.size, "stage": i, "peak": peak, "predicted": sum(parts.values()), "parts": parts}
        for i, (peak, parts) in enumerate(found)
    ]


def main(description: str | None = __doc__, prepare: Prepare = write, measured: Measure = measure) -> None:
    """Measure plans of even stages as the command line says, and print what was found.

    Args:
        description: of the program.
        prepare: writes what is measured into a folder.
        measured: see `measure`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4], choices=[1, 2, 3, 4, 6])
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--weights", default="native", choices=["native", "int8"], help="of the backbone's layers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = []
    for stages in arguments.stages:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            plan = even_plan(stages, arguments.rows, arguments.micro_batches, arguments.weights)
            found += measured(Path(folder), plan, arguments.tokens)
    if arguments.json:
        print(json.dumps(found))
        return
    show(found)


def show(found: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'stages':>6} {'stage':>5} {'peak':>9} {'predicted':>9} {'ratio':>6}   parts of the prediction, in MB")
    for row in found:
        parts = " ".join(f"{name} {size / 1e6:.0f}" for name, size in row["parts"].items())
        print(
            f"{row['stages']:6} {row['stage'] + 1:5} {row['peak'] / 1e6:6.0f} MB {row['predicted'] / 1e6:6.0f} MB "
            f"{row['peak'] / row['predicted']:6.2f}   {parts}"
        )


if __name__ == "__main__":
    main()
