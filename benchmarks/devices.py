"""Two processes of one thread each against one process of one thread, on the same work.

    taskset -c 0,1 python benchmarks/devices.py --output devices.json

Two kinds of work: CLINC150 with MiniLM, 32 texts of 11 tokens a batch, where a step is some 300 small operators; and
16 texts of 128 tokens a batch with random weights of BERT-base's shape, where it is arithmetic. The runs take turns,
each with an empty cache, without evaluation. ``cached_s`` is the median of the epochs after the first, ``fill_s`` the
time of the first one less that, as ``metrics.json`` has them.

``apart`` are as many runs of one device at once, each of a part of the rows in batches of as large a part: the same
work for each process and nothing to wait for, so their ratios are what the machine itself allows. Of several turns each
ratio is the median. Asked for with two devices: 1.8 for filling, 1.85 for a cached epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from end_to_end import write_data


@dataclass(frozen=True)
class Job:
    """One run: model, data, rows of a batch, processes."""

    model: str
    train: Path
    batch_size: int
    epochs: int
    devices: int


@dataclass(frozen=True)
class Times:
    """What a run took, as it reports itself."""

    fill_s: float
    cached_s: float
    bytes_sent: int
    busy_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/clinc150.json"))
    parser.add_argument("--model", help="folder of the encoder; the demo's MiniLM if left out")
    parser.add_argument("--work", nargs="*", default=["minilm", "bert-base"], choices=["minilm", "bert-base"])
    parser.add_argument("--rows", type=int, help="training rows; 6,000 of CLINC150, or 256 of 128 tokens, if left out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from pac_core.cli.demo import demo_model

    encoder = options.model or demo_model()
    result: dict[str, Any] = {"devices": options.devices, "work": {}}
    for work in options.work:
        with tempfile.TemporaryDirectory(prefix="pac-devices-") as scratch:
            job = prepare(work, encoder, options, Path(scratch))
            result["work"][work] = compare(job, options, Path(scratch))
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def prepare(work: str, encoder: str, options: argparse.Namespace, folder: Path) -> Job:
    """The work of one device."""
    train = folder / "train.jsonl"
    if work == "minilm":
        write_data(options.data, options.rows or 6000, folder)
        return Job(encoder, train, 32, options.epochs, 1)
    words = write_bert(Path(encoder), folder / "model")
    chosen = random.Random(0)
    rows = ({"text": " ".join(chosen.choices(words, k=126)), "label": str(n % 8)} for n in range(options.rows or 256))
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Job(str(folder / "model"), train, 16, options.epochs, 1)


def write_bert(encoder: Path, folder: Path) -> list[str]:
    """Random weights of BERT-base's shape, with the tokenizer of another BERT; returns words of one token each."""
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=30522)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(encoder / name, folder)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [word for word in lines if word.isascii() and word.isalpha()]


def compare(job: Job, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Turns of one process, several that work together, and several apart; their ratios."""
    turns: list[dict[str, Times]] = []
    parts = split(job, options.devices, folder)
    for turn in range(options.turns):
        place = folder / str(turn)
        alone, together = (run([each], place) for each in (job, replace(job, devices=options.devices)))
        turns.append({"one": alone, "together": together, "apart": run(parts, place)})
        print(json.dumps({name: asdict(times) for name, times in turns[-1].items()}), file=sys.stderr, flush=True)
        shutil.rmtree(place)
    ratios = {
        f"{part}, {name}": statistics.median(getattr(t["one"], part) / getattr(t[name], part) for t in turns)
        for part in ("fill_s", "cached_s")
        for name in ("together", "apart")
    }
    return {"ratios": ratios, "turns": [{name: asdict(times) for name, times in turn.items()} for turn in turns]}


def split(job: Job, count: int, folder: Path) -> list[Job]:
    """The work of one of ``count`` devices, as a job, for each of them."""
    lines = job.train.read_text(encoding="utf-8").splitlines(keepends=True)
    jobs = []
    for rank in range(count):
        train = folder / f"part-{rank}.jsonl"
        train.write_text("".join(lines[rank::count]), encoding="utf-8")
        jobs.append(replace(job, train=train, batch_size=job.batch_size // count))
    return jobs


def run(jobs: Sequence[Job], folder: Path) -> Times:
    """Runs at once, every process of them with one thread; of each figure the largest."""
    running = [start(job, folder) for job in jobs]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a run failed; see above")
    found = [times(json.loads(report)) for report in printed]
    return Times(
        fill_s=max(each.fill_s for each in found),
        cached_s=max(each.cached_s for each in found),
        bytes_sent=sum(each.bytes_sent for each in found),
        busy_s=[busy for each in found for busy in each.busy_s],
    )


def start(job: Job, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    place = tempfile.mkdtemp(dir=folder)
    arguments = [
        *("--model", job.model, "--train", str(job.train), "--output", f"{place}/out", "--cache-dir", f"{place}/cache"),
        *("--epochs", str(job.epochs), "--batch-size", str(job.batch_size), "--devices", str(job.devices)),
        *("--set", "fill=prefill", "--json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "pac_core.cli", "finetune", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def times(report: dict[str, Any]) -> Times:
    """From what a run prints."""
    seconds = [epoch["seconds"] for epoch in report["epochs"]]
    cached = statistics.median(seconds[1:])
    busy = [device["seconds_busy"] for device in report["devices"]]
    return Times(seconds[0] - cached, cached, report["epochs"][-1]["bytes_sent"], busy)


if __name__ == "__main__":
    main()
