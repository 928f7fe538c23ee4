"""What a measured profile predicts of runs on this machine, beside what the runs take.

    python benchmarks/profile_truth.py --output truth.json

Random weights of BERT-base's shape (or fewer layers of it), texts of ``--tokens`` tokens, two processes. Devices are
profiled before each run; the run's own plan is then simulated on that profile. Compared are seconds of an epoch: the
first, in which the side network trains in the stages while the cache is filled, without its very beginning, and cached
ones. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pac_core.config import RunConfig
from pac_core.contracts.cluster import Job
from pac_core.events import Event, StepDone
from pac_core.finetune import FineTuner
from pac_core.planning.make import load_plan
from pac_core.planning.simulate import Work, simulate
from pac_core.profiler import Profiler
from pac_core.registry import Registry
from pac_core.testing.tiny import SPECIAL, WORDS, tiny_tokenizer

EPOCHS = 5
WARM = 2
"""Epochs of which the first fills the cache, and the second waits for entries."""


class Stopwatch:
    """When how many samples of the first epoch were done."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.epoch == 1 and event.loss is not None:
            self.marks.append((time.perf_counter(), event.done))

    def epoch_s(self, samples: int) -> float:
        """Seconds of all samples at the rate between the first mark and the last."""
        (began, first), (ended, last) = self.marks[0], self.marks[-1]
        return samples * (ended - began) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=160, help="texts of an epoch")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=12.0, help="that the passes may take in a profile")
    parser.add_argument(
        "--plans", nargs="*", default=["pipeline/2", "pipeline/4", "data-parallel/16", "data-parallel/4", "pac/4"]
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
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
    config, registry = RunConfig.build(tree), Registry()
    profile = Profiler(config, options.seconds, registry).run()
    watch = Stopwatch()
    metrics = FineTuner(config, registry=registry, observers=[watch]).run().metrics
    plan = load_plan(place / "out" / "plan.json")
    tokens = metrics["epochs"][0]["tokens"] / metrics["epochs"][0]["samples"]
    job = Job(options.batch_size, micro, tokens, round(tokens))
    timeline = simulate(plan, profile.profile, profile.cluster, job, Work(options.rows, EPOCHS))
    predicted = {phase.name: phase.seconds for phase in timeline.phases}
    cached = statistics.median(epoch["seconds"] for epoch in metrics["epochs"][WARM:])
    errors = [fit.median_error for fits in profile.fits.values() for fit in fits]
    return {
        "stages": [[list(stage.layers.values()), list(stage.rows)] for stage in plan.stages],
        "fill": {"predicted": predicted["fill"], "real": watch.epoch_s(options.rows)},
        "cached": {"predicted": predicted["cached"] / (EPOCHS - 1), "real": cached},
        "fit_errors": {"median": statistics.median(errors), "largest": max(errors)},
    }


if __name__ == "__main__":
    main()
