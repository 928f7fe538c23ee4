"""Two processes of one thread each against one process of one thread, on the same work: CLINC150 with MiniLM.

    taskset -c 0,1 python benchmarks/devices.py --rows 3000 --epochs 3 --output devices.json

The runs take turns, each with an empty cache, without evaluation. ``cached_s`` is the mean of the epochs after the
first, ``fill_s`` the time of the first one less that, as ``metrics.json`` has them; of several turns each ratio is the
median. Asked for with two devices: 1.8 for filling, 1.85 for a cached epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from end_to_end import write_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/clinc150.json"))
    parser.add_argument("--rows", type=int, default=3000, help="training rows, of 15,000")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", help="folder of the encoder; the demo's MiniLM if left out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from pac_core.cli.demo import demo_model

    model = options.model or demo_model()
    turns = []
    with tempfile.TemporaryDirectory(prefix="pac-devices-") as scratch:
        write_data(options.data, options.rows, Path(scratch))
        for turn in range(options.turns):
            common = [model, options.epochs, options.batch_size, Path(scratch)]
            turns.append({count: timed(count, turn, *common) for count in (1, options.devices)})
            print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    ratios = {
        part: statistics.median(turn[1][part] / turn[options.devices][part] for turn in turns)
        for part in ("fill_s", "cached_s")
    }
    result = {
        **vars(options),
        "data": str(options.data),
        "output": str(options.output),
        "turns": turns,
        "ratios": ratios,
    }
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def timed(devices: int, turn: int, model: str, epochs: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """One run, every process of it with one thread."""
    place = folder / f"{devices}-{turn}"
    settings = ["fill=prefill", "generation.eval_samples=0"]
    arguments = [
        *("--model", model, "--train", str(folder / "train.jsonl"), "--output", str(place)),
        *("--epochs", str(epochs), "--batch-size", str(batch_size), "--devices", str(devices)),
        *("--cache-dir", str(folder / f"cache-{devices}-{turn}"), "--json"),
        *(part for setting in settings for part in ("--set", setting)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "pac_core.cli", "finetune", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    report = json.loads(done.stdout)
    seconds = [epoch["seconds"] for epoch in report["epochs"]]
    cached = statistics.mean(seconds[1:])
    return {
        "fill_s": seconds[0] - cached,
        "cached_s": cached,
        "bytes_sent": report["epochs"][1]["bytes_sent"],
        "threads": [device["threads"] for device in report["devices"]],
        "busy_s": [device["seconds_busy"] for device in report["devices"]],
    }


if __name__ == "__main__":
    main()
