"""Peak memory of the devices of ``pac finetune`` in epoch 1, beside what is predicted.

    python benchmarks/run_memory.py [--stages 2 4] [--rows 8] [--tokens 128] [--micro-batches 8] [--json]

A BERT of 12 layers and width 768 with random weights, in stages of as many layers each, one process a device, trains as
it fills the cache for three batches. Measured is the largest resident memory from before a device opens its slice
until epoch 1 is over, above what was resident then; what the same run of a tiny model takes above its own prediction is
taken off: code that is loaded, buffers, threads. Predicted are the stage (`stage_memory`) and the whole side network.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from stage_memory import ADAPTER, main, write

from pac_core.config import RunConfig
from pac_core.contracts.scheduler import Plan
from pac_core.events import EpochDone, Event, RunStarted
from pac_core.finetune import FineTuner
from pac_core.planning.make import device_names
from pac_core.planning.stage_memory import replica_bytes, stage_memory
from pac_core.testing.tiny import WORDS, tiny_tokenizer

_spawn = multiprocessing.get_context("spawn")


class Peaks:
    """An observer that measures this process, which leads, and its children, the other devices."""

    def __init__(self) -> None:
        self.before: list[int] = []
        self.grown: list[int] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):  # the others wait for the leader's first weights
            self.before = [field(process, "VmRSS") for process in devices()]
            for process in devices():
                (process / "clear_refs").write_text("5")  # VmHWM begins anew
        elif isinstance(event, EpochDone):
            peaks = [field(process, "VmHWM") for process in devices()]
            self.grown = [peak - before for peak, before in zip(peaks, self.before, strict=True)]


def devices() -> Iterator[Path]:
    """Their folders in /proc, by rank."""
    yield Path("/proc/self")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in sorted(map(int, children)):
        if b"pac_core.member" in Path(f"/proc/{child}/cmdline").read_bytes():
            yield Path(f"/proc/{child}")


def field(process: Path, name: str) -> int:
    """Bytes of a field of its status."""
    lines = (process / "status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def lead(settings: dict[str, Any], pipe: Connection) -> None:
    """A run; sends how much each device has grown, and the backbone's facts."""
    peaks = Peaks()
    result = FineTuner(RunConfig.build(settings), observers=[peaks]).run()
    pipe.send((peaks.grown, result.model.info))


def run(folder: Path, model: str, plan: Plan, tokens: int) -> tuple[list[int], Any]:
    """What `lead` finds, for texts of ``tokens`` tokens."""
    names = device_names(plan.size)
    named = replace(plan, stages=tuple(replace(stage, devices=(n,)) for stage, n in zip(plan.stages, names)))
    (folder / "plan.json").write_text(json.dumps(named.to_json()))
    batch = plan.micro_batches * plan.micro_batch_size
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, tokens - 2)) for _ in range(3 * batch)]
    rows = [json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n" for i, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("".join(rows))
    settings = {
        "model": str(folder / model),
        "train": str(folder / "train.jsonl"),
        "output": str(folder / "output"),
        "plan": str(folder / "plan.json"),
        "devices": str(plan.size),
        "fill": "train-while-fill",
        "epochs": 1,
        "batch_size": batch,
        "adapter": {"init": ADAPTER.init},
        "dtype": "float32",
        "max_length": tokens,
        "cache": {"dir": str(folder / f"cache {model}")},
    }
    ours, theirs = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=lead, args=(settings, theirs))
    process.start()
    theirs.close()
    found: tuple[list[int], Any] = ours.recv()
    process.join()
    return found


def measure(folder: Path, plan: Plan, tokens: int) -> list[dict[str, Any]]:
    """Peak and prediction of every device, in bytes."""
    few = 8
    (idle, tiny), (grown, info) = run(folder, "tiny", plan, few), run(folder, "model", plan, tokens)
    found = []
    for stage in range(plan.size):
        parts = asdict(stage_memory(info, ADAPTER, plan, stage, tokens)) | {
            "replica": replica_bytes(info, ADAPTER, plan)
        }
        beside = idle[stage] - stage_memory(tiny, ADAPTER, plan, stage, few).total
        found.append({
            "stages": plan.size,
            "stage": stage,
            "peak": grown[stage] - beside,
            "predicted": sum(parts.values()),
            "beside": beside,
            "parts": parts,
        })  # fmt: skip
    return found


def write_all(folder: Path) -> None:
    """The model, a tiny one, and a tokenizer for both."""
    write(folder)
    for model in ("model", "tiny"):
        tiny_tokenizer().save_pretrained(folder / model)


if __name__ == "__main__":
    main(__doc__, write_all, measure)
