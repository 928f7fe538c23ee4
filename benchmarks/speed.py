"""Step time and memory of PAC beside LoRA and full fine-tuning, on one model shape, each in a process of its own.

    python benchmarks/speed.py --shape t5-base --batch 16 --tokens 128 --targets 4 --output speed.json

All methods see the same random token ids, the same batch size, threads and optimiser. Memory is the peak resident size
above that of the interpreter with torch imported. For cached epochs the peak is reset when the backbone has been
released, since that is when the phase begins. Printed: seconds of each step (median), and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

SHAPES = ("t5-base", "t5-tiny")
METHODS = ("pac_fill", "pac_cached", "lora", "full", "lora_onednn")
"""The last is LoRA with the library for matrix products that PAC chooses on this processor, and plain attention, which
goes best with it; nobody gets that from PEFT, but it shows how much of the difference is the library's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="t5-base")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step")
    parser.add_argument("--tokens", type=int, default=128, help="source tokens of a sample")
    parser.add_argument("--targets", type=int, default=4, help="target tokens of a sample (a label word and the end)")
    parser.add_argument("--steps", type=int, default=4, help="steps that are counted, after one that is not")
    parser.add_argument("--rounds", type=int, default=2, help="times the methods take turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-dtype", default="bfloat16")
    parser.add_argument("--store", default="disk")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], Path(options.child[1]), options)))
        return
    result = compare(options)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All methods in turn, several rounds; medians over all steps."""
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in options.methods}
    with tempfile.TemporaryDirectory(prefix="pac-speed-") as folder:
        save_model(options.shape, Path(folder) / "model")
        for number in range(options.rounds):
            for method in options.methods:
                runs[method].append(run_child(method, Path(folder)))
                print(f"round {number + 1} {method}: {runs[method][-1]}", file=sys.stderr, flush=True)
    rows = {
        method: {
            "step_s": median(step for run in found for step in run["steps"]),
            "peak_bytes": max(run["peak_bytes"] for run in found),
        }
        for method, found in runs.items()
    }
    keys = ("shape", "batch", "tokens", "targets", "threads", "cache_dtype", "store")
    return {**{key: getattr(options, key) for key in keys}, "rows": rows, "ratios": ratios(rows)}


def ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Times and memory relative to PAC."""
    pairs = [("lora", "pac_cached"), ("full", "pac_cached"), ("pac_fill", "lora"), ("lora_onednn", "pac_cached")]
    found = {f"{a}/{b}": rows[a]["step_s"] / rows[b]["step_s"] for a, b in pairs if a in rows and b in rows}
    for other in ("full", "lora"):
        if other in rows and "pac_cached" in rows:
            found[f"memory pac_cached/{other}"] = rows["pac_cached"]["peak_bytes"] / rows[other]["peak_bytes"]
    return found


def run_child(method: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", *sys.argv, "--child", method, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def save_model(shape: str, path: Path) -> None:
    """A model of this shape with random weights, as safetensors."""
    from transformers import T5Config, T5ForConditionalGeneration

    widths = {
        "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "t5-tiny": {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2},
    }[shape]
    config = T5Config(**widths, d_kv=64, vocab_size=32128, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(path)


def child(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One method in this process: seconds of each counted step, and peak memory above torch alone."""
    import torch

    torch.set_num_threads(options.threads)
    idle = resident("VmRSS")
    torch.manual_seed(0)
    run = run_pac if method.startswith("pac") else run_transformers
    steps = run(method, folder, options)
    return {"steps": steps, "peak_bytes": resident("VmHWM") - idle}


def run_transformers(method: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """Full fine-tuning, or LoRA with r = 8 on q and v, by transformers' own forward."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from pac_core.baselines import with_lora
    from pac_core.hardware import fast_products

    onednn = method == "lora_onednn"
    attention = "eager" if onednn else None
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model", attn_implementation=attention)
    model = model if method == "full" else with_lora(model, ("q", "v"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    seconds = []
    for source, target in batches(options):
        began = time.perf_counter()
        with fast_products(source.numel() if onednn else 0):
            model(input_ids=source, attention_mask=torch.ones_like(source), labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def run_pac(method: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """Steps that fill the cache, or steps from the cache that an earlier fill has left on disk."""
    from pac_core import ActivationCache, ParallelAdapterConfig, get_pac_model
    from pac_core.config import OptimizerConfig
    from pac_core.contracts.backbone import DECODER, ENCODER
    from pac_core.examples import Example, Segment, Task
    from pac_core.hardware import fast_products
    from pac_core.runtime.optimizer import clip, make_optimizer

    if method == "pac_fill":
        shutil.rmtree(folder / "cache", ignore_errors=True)
    cache = ActivationCache.open(options.store, folder / "cache", dtype=options.cache_dtype)
    model = get_pac_model(str(folder / "model"), ParallelAdapterConfig(), cache=cache, task=Task("seq2seq"))
    data = []
    for source, target in batches(options):
        rows = []
        for ids, labels in zip(source.int().numpy(), target.numpy()):
            segment = Segment(ENCODER, ids)
            fed = Segment(DECODER, shifted(labels), None, segment)
            rows.append(Example((segment, fed), labels))
        data.append(rows)
    if method == "pac_cached":
        missing = sum(len(model.reader.missing(rows)) for rows in data)
        assert not missing, f"{missing} samples are not in the cache; run pac_fill first"
        model.release_backbone()
        Path("/proc/self/clear_refs").write_text("5")
    optimizer = make_optimizer(model, OptimizerConfig())
    model.train()
    seconds = []
    began = time.perf_counter()
    for rows, taps in model.reader.read_each(data):
        optimizer.zero_grad(set_to_none=False)
        with fast_products(max(t.values.shape[1] for t in taps.values())):
            model.loss(rows, taps).backward()
        clip(optimizer, 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    cache.close()
    return seconds[1:]


def shifted(labels: Any) -> Any:
    """Decoder input ids (tokens,) int32: the start id, then all labels but the last."""
    import numpy as np

    return np.concatenate([[0], labels[:-1]]).astype(np.int32)


def batches(options: argparse.Namespace) -> Any:
    """Pairs of random source ids (batch, tokens) and target ids (batch, targets) int64, one a step."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for _ in range(options.steps + 1):
        yield (
            torch.randint(5, 32000, (options.batch, options.tokens), generator=generator),
            torch.randint(5, 32000, (options.batch, options.targets), generator=generator),
        )


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} for process {os.getpid()}")


if __name__ == "__main__":
    main()
