"""Quality beside LoRA and full fine-tuning on five real tasks, with the real MiniLM: a long run that can be resumed.

    python benchmarks/quality.py run --work quality-work      # hours on 2 cores; stop it at any time, start it again
    python benchmarks/quality.py table --work quality-work    # the table of docs/quality.md from what is there

Every job (method, task, learning rate, seed) trains 3 epochs on one fixed subset of 3,000 rows and is one line of
results.jsonl, written when it ends. The learning rate of each method and task is chosen on the development split with
seed 0, from two rates and, when all seeds are done, a third. Scores are of the test split, at the epoch that is best on
the development split, times 100: MRPC mean of accuracy and F1, STS-B mean of Pearson and Spearman, the others accuracy.

Splits: MRPC develops on training rows outside the subset and tests on its test file; STS-B, SST-2 and CLINC150 have
files of their own for both; QNLI develops on one half of its dev file and tests on 2,000 rows of the other.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TASKS = ("clinc150", "stsb", "sst2", "mrpc", "qnli")
RATES = {"pac": (2e-3, 1e-3, 4e-3), "lora": (2e-3, 5e-3, 5e-4), "full": (2e-4, 5e-4, 5e-5)}
"""Learning rates of each method, the one to try first in front."""

SEEDS = (0, 1, 2)
TRAIN_ROWS = 3000
EPOCHS = 3


@dataclass(frozen=True)
class Job:
    """One run: what is trained, how, on what."""

    method: str
    task: str
    lr: float
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path("quality-work"), help="folder for data, caches and results")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--model", help="folder of the encoder; the demo's MiniLM if left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(RATES), choices=list(RATES))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    options = parser.parse_args()
    if options.what == "table":
        print(table(read_results(options.work)))
        return
    run_jobs(options)


def run_jobs(options: argparse.Namespace) -> None:
    """All jobs that have no result yet, the most telling first."""
    import torch

    from pac_core.cli.demo import demo_model

    torch.set_num_threads(options.threads)
    model = options.model or demo_model()
    write_splits(options.data, options.work / "data")
    while job := next(jobs(read_results(options.work), options.methods, options.tasks), None):
        began, spent = time.perf_counter(), time.process_time()
        record = (run_pac if job.method == "pac" else run_other)(job, model, options.work)
        record = {**asdict(job), **record, "wall": time.perf_counter() - began, "cpu": time.process_time() - spent}
        with open(options.work / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{job}: dev {record['dev']:.2f} test {record['test']:.2f} cpu {record['cpu']:.0f} s", file=sys.stderr)


def jobs(done: list[dict[str, Any]], methods: list[str], tasks: list[str]) -> Iterator[Job]:
    """What is left: two rates with seed 0, the other seeds at the rate that is best on the development split, then
    the third rate (and, where it wins, its seeds, since this is asked anew after every job)."""
    pairs = [(task, method) for task in tasks for method in methods]
    first = [
        Job(method, task, lr, 0) for lr_index in (0, 1) for task, method in pairs for lr in [RATES[method][lr_index]]
    ]
    seeds = [Job(method, task, best_rate(done, method, task), seed) for seed in SEEDS[1:] for task, method in pairs]
    last = [Job(method, task, RATES[method][2], 0) for task, method in pairs]
    known = {(r["method"], r["task"], r["lr"], r["seed"]) for r in done}
    yield from (job for job in first + seeds + last if (job.method, job.task, job.lr, job.seed) not in known)


def best_rate(done: list[dict[str, Any]], method: str, task: str) -> float:
    """The learning rate with the best development score of seed 0; the first one before there is a score."""
    found = [r for r in done if (r["method"], r["task"], r["seed"]) == (method, task, 0)]
    return max(found, key=lambda r: r["dev"])["lr"] if found else RATES[method][0]


def run_pac(job: Job, model: str, work: Path) -> dict[str, Any]:
    """PAC through its public surface; the cache is shared by all jobs, so the backbone runs once for each task."""
    from pac_core import FineTuner, RunConfig
    from pac_core.runtime.serve import open_adapter

    data, output = work / "data", work / "runs" / f"{job.task}-{job.lr}-{job.seed}"
    config = RunConfig.build(
        {
            "model": model,
            "train": str(data / f"{job.task}-train.jsonl"),
            "eval": str(data / f"{job.task}-dev.jsonl"),
            "task": "regression" if job.task == "stsb" else "classification",
            "output": str(output),
            "epochs": EPOCHS,
            "seed": job.seed,
            "optimizer": {"lr": job.lr},
            "cache": {"dir": str(work / "cache")},
        }
    )
    result = FineTuner(config).run()
    epochs = [(score(job.task, e["eval"]), e["seconds"]) for e in result.metrics["epochs"]]
    test = score(job.task, open_adapter(output).score(str(data / f"{job.task}-test.jsonl")))
    return {"dev": max(s for s, _ in epochs), "test": test, "epochs": epochs}


def run_other(job: Job, model: str, work: Path) -> dict[str, Any]:
    """LoRA or full fine-tuning."""
    from pac_core.baselines import BaselineSettings, run_baseline

    files = {split: str(work / "data" / f"{job.task}-{split}.jsonl") for split in ("train", "dev", "test")}
    settings = BaselineSettings(
        model, files["train"], files["dev"], job.method, job.lr, EPOCHS, seed=job.seed, test=files["test"]
    )
    result = run_baseline(settings)
    epochs = [(score(job.task, e["eval"]), e["seconds"]) for e in result["epochs"]]
    return {"dev": max(s for s, _ in epochs), "test": score(job.task, result["test"]), "epochs": epochs}


def score(task: str, metrics: dict[str, float]) -> float:
    """The task's number, times 100."""
    names = {"mrpc": ("accuracy", "f1"), "stsb": ("pearson", "spearman")}.get(task, ("accuracy",))
    return 100 * sum(metrics[name] for name in names) / len(names)


def read_results(work: Path) -> list[dict[str, Any]]:
    path = work / "results.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(done: list[dict[str, Any]]) -> str:
    """Mean test score of each method and task at its best rate, with the number of seeds."""
    lines = ["| task | " + " | ".join(RATES) + " |", "| --- " * (len(RATES) + 1) + "|"]
    for task in TASKS:
        cells = []
        for method in RATES:
            lr = best_rate(done, method, task)
            found = [r["test"] for r in done if (r["method"], r["task"], r["lr"]) == (method, task, lr)]
            cells.append(f"{statistics.mean(found):.2f} (lr {lr:g}, {len(found)} seeds)" if found else "not run")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_splits(data: Path, folder: Path) -> None:
    """The fixed splits of all tasks as JSON lines."""
    from pac_core.data import read_samples

    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "clinc150": ("clinc150.json:train", "clinc150.json:val", "clinc150.json:test"),
        "stsb": ("stsb_train.jsonl", "stsb_dev.jsonl", "stsb_test.jsonl"),
        "sst2": ("sst2_train.tsv", "sst2_dev.tsv", "sst2_test.tsv"),
        "mrpc": ("mrpc_train.tsv", None, "mrpc_test.tsv"),
        "qnli": ("qnli_train_part.jsonl", "qnli_dev.jsonl", None),
    }
    for task, (train, dev, test) in files.items():
        rows = {"train": shuffled(read_samples(data / train))}
        rows["train"], rest = rows["train"][:TRAIN_ROWS], rows["train"][TRAIN_ROWS:]
        rows["dev"] = rest if dev is None else read_samples(data / dev)
        if test is None:
            mixed = shuffled(rows["dev"])
            rows["dev"], rows["test"] = mixed[:2000], mixed[2000:4000]
        else:
            rows["test"] = read_samples(data / test)
        for split, samples in rows.items():
            lines = (json.dumps(row(sample)) + "\n" for sample in samples)
            (folder / f"{task}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "done").touch()


def shuffled(samples: list[Any]) -> list[Any]:
    """A fixed order, the same for all methods and seeds."""
    return random.Random(1234).sample(samples, len(samples))


def row(sample: Any) -> dict[str, Any]:
    texts = (
        {"text": sample.text} if sample.text_pair is None else {"sentence1": sample.text, "sentence2": sample.text_pair}
    )
    return {**texts, "label": sample.label}


if __name__ == "__main__":
    main()
