"""What a measured profile predicts of runs on this machine, beside what the runs take.

    python benchmarks/profile_truth.py --output truth.json
    python benchmarks/profile_truth.py --clock cpu --output truth.json

Random weights of BERT-base's shape (or fewer layers of it), texts of ``--tokens`` tokens, two processes of one thread.
Devices are profiled before each run; the run's own plan is then simulated on that profile. Compared are seconds of an
epoch: the first, in which the side network trains in the stages while the cache is filled, without its very beginning,
and cached ones.

``--clock wall`` compares what epochs take, and needs a machine that does nothing else. ``--clock cpu`` is for one that
does: both sides count the processor time of one computing thread, which waits and interruptions are no part of. The
profile is then measured in one process, and compared is the first device's own work. What two processes take from each
other, as where they share a core's units or memory, is missing from such a profile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Cluster, Job
from pac_core.events import Event, StepDone
from pac_core.finetune import FineTuner
from pac_core.planning import measure, probe
from pac_core.planning.make import load_plan
from pac_core.planning.profile_file import ProfileFile
from pac_core.planning.simulate import Timeline, simulate
from pac_core.planning.work import Work
from pac_core.profiler import Profiler
from pac_core.registry import Registry
from pac_core.testing.tiny import SPECIAL, WORDS, tiny_tokenizer

EPOCHS = 5
WARM = 2
"""Epochs of which the first fills the cache, and the second waits for entries."""


class Stopwatch:
    """When how many samples of each epoch were done, by a clock of the thread that computes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.marks: dict[int, list[tuple[float, int]]] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.loss is not None:
            self.marks.setdefault(event.epoch, []).append((self.clock(), event.done))

    def epoch_s(self, epoch: int, samples: int) -> float:
        """Seconds of all samples at the rate between an epoch's first mark and its last; if there is but one, since
        that of the epoch before."""
        marks = self.marks[epoch]
        began, first = marks[0] if len(marks) > 1 and marks[0][1] < marks[-1][1] else (self.marks[epoch - 1][-1][0], 0)
        return samples * (marks[-1][0] - began) / (marks[-1][1] - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=160, help="texts of an epoch")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=12.0, help="that the passes may take in a profile")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument(
        "--plans", nargs="*", default=["pipeline/2", "pipeline/4", "data-parallel/16", "data-parallel/4", "pac/4"]
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory(prefix="pac-truth-") as scratch:
        folder = Path(scratch)
        write_work(folder, options)
        for name in options.plans:
            scheduler, _, micro = name.partition("/")
            found.append({"plan": name, **compare(folder, scheduler, int(micro), options)})
            print(json.dumps(found[-1]), flush=True)
    ratios = [one[phase]["predicted"] / one[phase]["real"] for one in found for phase in ("fill", "cached")]
    result = {
        "plans": found,
        "ratios": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
    }
    print(json.dumps(result["ratios"]))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def write_work(folder: Path, options: argparse.Namespace) -> None:
    """The model, and texts that are all as long."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=len(SPECIAL) + 2 + len(WORDS), num_hidden_layers=options.layers)
    BertModel(config).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    chosen = random.Random(0)
    lines = (
        json.dumps({"text": " ".join(chosen.choices(WORDS, k=options.tokens - 1)), "label": str(n % 4)})
        for n in range(options.rows)
    )
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare(folder: Path, scheduler: str, micro: int, options: argparse.Namespace) -> dict[str, Any]:
    """Profile, run, and simulate one plan."""
    place = Path(tempfile.mkdtemp(dir=folder))
    tree = {
        "model": str(folder / "model"),
        "train": str(folder / "train.jsonl"),
        "output": str(place / "out"),
        "task": "classification",
        "epochs": EPOCHS,
        "batch_size": options.batch_size,
        "micro_batch_size": micro,
        "max_length": options.tokens + 2,
        "dtype": options.dtype,
        "fill": "train-while-fill",
        "devices": "2",
        "scheduler": scheduler,
        "cache": {"dir": str(place / "cache")},
    }
    config = RunConfig.build(tree)
    watch = Stopwatch(time.perf_counter if options.clock == "wall" else time.thread_time)
    profile = profiled(config, options)
    metrics = FineTuner(config, observers=[watch]).run().metrics
    plan = load_plan(place / "out" / "plan.json")
    tokens = metrics["epochs"][0]["tokens"] / metrics["epochs"][0]["samples"]
    devices = [name for stage in plan.stages for name in stage.devices]
    if options.clock == "cpu":  # all devices are alike
        (one,) = profile.cluster.devices
        profile = replace(profile, cluster=Cluster(tuple(replace(one, name=name) for name in devices)))
    assert profile.job is not None
    job = Job(options.batch_size, micro, tokens, round(tokens), profile.job.dtype)
    work = Work(options.rows, EPOCHS, entries="bfloat16", overlaps=True)
    timeline = simulate(plan, profile.profile, profile.cluster, job, work)
    fill, cached = predicted(timeline, options, devices[0])
    real = [watch.epoch_s(epoch, options.rows) for epoch in range(1, EPOCHS + 1)]
    errors = [fit.median_error for fits in profile.fits.values() for fit in fits]
    return {
        "stages": [[list(stage.layers.values()), list(stage.rows)] for stage in plan.stages],
        "fill": {"predicted": fill, "real": real[0]},
        "cached": {"predicted": cached, "real": statistics.median(real[WARM:])},
        "fit_errors": {"median": statistics.median(errors), "largest": max(errors)},
    }


def profiled(config: RunConfig, options: argparse.Namespace) -> ProfileFile:
    """The devices' profile, by the clock that is compared with."""
    if options.clock == "wall":
        return Profiler(config, options.seconds, Registry()).run()
    clocks = probe.time, measure.time
    probe.time = SimpleNamespace(perf_counter=time.thread_time)
    try:
        return Profiler(config.model_copy(update={"devices": "1"}), options.seconds, Registry()).run()
    finally:
        probe.time, measure.time = clocks


def predicted(timeline: Timeline, options: argparse.Namespace, first: str) -> tuple[float, float]:
    """Seconds of the first epoch, and of a cached one; by the clock ``cpu`` those that the first device works."""
    if options.clock == "wall":
        phases = {phase.name: phase.seconds for phase in timeline.phases}
        return phases["fill"], phases["cached"] / (EPOCHS - 1)
    steps = options.rows / options.batch_size
    busy = [
        sum(span.end_s - span.start_s for span in spans if span.device == first and span.kind != "reduce")
        for spans in (timeline.spans, timeline.cached_spans)
    ]
    return steps * busy[0], steps * busy[1]


if __name__ == "__main__":
    main()
