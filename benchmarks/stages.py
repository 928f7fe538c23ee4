"""Time of the stage runtime itself: stages that compute nothing, in processes over the ``local`` transport.

    python benchmarks/stages.py [--micro-batches 64] [--steps 30] [--json]

``median`` and ``fastest`` are wall times of a step divided by its micro-batches: what a stage spends on one, forward
and backward, while all others do the same. ``processor`` is the processor time of a stage's process divided by its
micro-batches, the transport's thread included; it alone does not depend on there being a core for every stage. The side
states that travel are narrow, so that none of it is about copying them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.scheduler import Plan, ScheduleName, StagePlan
from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.examples import Example, Segment
from pac_core.model import PacModel, get_pac_model
from pac_core.runtime.parts import Part
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.stage import Passed, Stage
from pac_core.testing.tiny import tiny_model
from pac_plugins.transports import make_local

TOKENS = 32
WIDTHS = {"b": 32, "a": 8}

_fork = multiprocessing.get_context("fork")


class EmptyStage(Stage):
    """Sends what a stage sends, and computes none of it."""

    def forward(self, part: Part) -> tuple[Part, Passed]:
        inputs = {name: tensor for name, tensor in part.tensors.items() if name.endswith(".a")}
        tokens = sum(map(len, part.examples))
        tensors = {f"{ENCODER}.{kind}": torch.zeros(tokens, width) for kind, width in WIDTHS.items()}
        passed = Passed(inputs, {}, torch.zeros(()) if self.is_last else None, tokens)
        return replace(part, tensors={} if self.is_last else tensors), passed

    def backward(self, passed: Passed, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(passed.inputs)


def rows(count: int) -> list[Example]:
    """Texts of `TOKENS` tokens with a class."""
    rng = np.random.default_rng(0)
    types = np.zeros(TOKENS, np.int8)
    return [
        Example((Segment(ENCODER, rng.integers(4, 64, TOKENS).astype(np.int32), types),), i % 3) for i in range(count)
    ]


@dataclass(frozen=True)
class Times:
    """Seconds of each step on one device: of wall and of processor time."""

    wall: list[float]
    processor: list[float]


def run(rank: int, plan: Plan, model: PacModel, peers: list[Peer], steps: int) -> Times:
    """Run a device's steps, all devices beginning each together."""
    torch.set_num_threads(1)
    layers = plan.stages[rank].layers
    batch = rows(plan.micro_batches * plan.micro_batch_size)
    times = Times([], [])
    with make_local(TransportOptions(rank=rank, peers=peers)) as transport:
        pipeline = Pipeline(plan, EmptyStage(model, layers), transport)
        for _ in range(steps):
            transport.barrier()
            wall, processor = time.perf_counter(), time.process_time()
            pipeline.gradients(len(batch), batch if rank == 0 else ())
            times.wall.append(time.perf_counter() - wall)
            times.processor.append(time.process_time() - processor)
        transport.barrier()
    return times


def measure(stages: int, schedule: ScheduleName, micro_batches: int, micro_rows: int, steps: int) -> dict[str, Any]:
    """What every stage took for a micro-batch, in milliseconds."""
    plan = Plan(
        tuple(StagePlan({ENCODER: (i, i + 1)}, (str(i),), (micro_rows,)) for i in range(stages)),
        micro_batches,
        schedule,
    )
    model = get_pac_model(tiny_model("bert", layers=stages), AdapterConfig(reduction=4, init="random"))
    with tempfile.TemporaryDirectory() as folder:
        peers = [Peer(str(Path(folder) / str(rank))) for rank in range(stages)]

        def child(rank: int, pipe: Connection) -> None:
            pipe.send(run(rank, plan, model, peers, steps))

        pipes = [_fork.Pipe(duplex=False) for _ in range(stages)]
        processes = [_fork.Process(target=child, args=(rank, pipe[1])) for rank, pipe in enumerate(pipes)]
        for process in processes:
            process.start()
        found: list[Times] = [pipe[0].recv() for pipe in pipes]
        for process in processes:
            process.join()
    per_micro_batch = 1e3 / micro_batches
    return {
        "stages": stages,
        "schedule": schedule,
        "rows": micro_rows,
        "median_ms": per_micro_batch * median(max(walls) for walls in zip(*(times.wall for times in found))),
        "fastest_ms": per_micro_batch * min(max(walls) for walls in zip(*(times.wall for times in found))),
        "processor_ms": [per_micro_batch * median(times.processor) for times in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = [
        measure(stages, "1f1b", arguments.micro_batches, count, arguments.steps)
        for stages in (2, 4)
        for count in (1, 8)
    ]
    if arguments.json:
        print(json.dumps({"micro_batches": arguments.micro_batches, "runs": found}))
        return
    print(f"{'stages':>6} {'rows':>5} {'median':>9} {'fastest':>9}   processor, by stage")
    for row in found:
        each = " ".join(f"{ms:.2f}" for ms in row["processor_ms"])
        print(f"{row['stages']:6} {row['rows']:5} {row['median_ms']:6.2f} ms {row['fastest_ms']:6.2f} ms   {each} ms")


if __name__ == "__main__":
    main()
