"""From data file to trained adapter: PAC beside LoRA on CLINC150 with MiniLM, each in a process of its own.

    python benchmarks/end_to_end.py --rows 3000 --epochs 3 10 --output end-to-end.json
    python benchmarks/end_to_end.py --rows 3000 --epochs 3 --int8

For each number of epochs: PAC with an empty cache, PAC again with the cache that the first run left, and LoRA (PEFT,
r = 8 on query and value), in float32 as PEFT does it by default and, for the fewest epochs, under PyTorch's bfloat16
autocast. PAC runs by its defaults: the backbone in bfloat16 where the processor has units for it, which is said as
``backbone``. ``train_s`` is the time of all epochs with filling, as each reports it, ``wall_s`` that of
the whole process, with start-up and evaluation. Accuracy is of the validation file after the last epoch.

With ``--int8`` instead: PAC with native and with int8 weights of the backbone, in bfloat16 and float32. ``backbone_s``
are processor seconds of the backbone alone over 1,000 training rows, both in turns in one process, the best of five.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/clinc150.json"))
    parser.add_argument("--rows", type=int, default=15000, help="training rows, of 15,000")
    parser.add_argument("--epochs", type=int, nargs="*", default=[3, 10])
    parser.add_argument("--model", help="folder of the encoder; the demo's MiniLM if left out")
    parser.add_argument("--int8", action="store_true", help="native and int8 weights of the backbone, without LoRA")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from pac_core.cli.demo import demo_model

    model = options.model or demo_model()
    result: dict[str, Any] = {"rows": options.rows, "runs": {}}
    with tempfile.TemporaryDirectory(prefix="pac-end-to-end-") as scratch:
        folder = Path(scratch)
        write_data(options.data, options.rows, folder)
        for epochs in options.epochs:
            if options.int8:
                result["runs"][str(epochs)] = compare_weights(model, folder, epochs)
            else:
                result["runs"][str(epochs)] = compare(model, folder, epochs, autocast=epochs == min(options.epochs))
            print(json.dumps({epochs: result["runs"][str(epochs)]}, indent=2), file=sys.stderr, flush=True)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def compare(model: str, folder: Path, epochs: int, autocast: bool) -> dict[str, Any]:
    """The runs and their ratios."""
    files = data_files(folder)
    pac = finetune(model, folder, epochs, f"cache-{epochs}")
    settings = {"model": model, "train": files[1], "eval": files[3], "method": "lora", "epochs": epochs}
    runs = {
        "pac": timed([*pac, str(folder / f"out-{epochs}")]),
        "pac_warm": timed([*pac, str(folder / f"again-{epochs}")]),
    }
    for name in ("lora", "lora_autocast") if autocast else ("lora",):
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**settings, "autocast": name == "lora_autocast"}), encoding="utf-8")
        runs[name] = timed(["-m", "pac_core.baselines", str(file)])
    ratios = {
        f"{lora}/{name} {kind}": runs[lora][kind] / runs[name][kind]
        for lora in ("lora", "lora_autocast")
        for name in ("pac", "pac_warm")
        for kind in ("train_s", "wall_s")
        if lora in runs
    }
    return {**runs, "ratios": ratios}


def compare_weights(model: str, folder: Path, epochs: int) -> dict[str, Any]:
    """PAC with native and int8 weights in turns, each with a cache of its own."""
    runs: dict[str, Any] = {}
    for dtype in ("bfloat16", "float32"):
        for weights in ("native", "int8"):
            name = f"{dtype} {weights}"
            held = ["--set", f"dtype={dtype}", "--set", f"backbone_weights={weights}"]
            pac = finetune(model, folder, epochs, f"cache {name} {epochs}")
            runs[name] = timed([*pac, str(folder / f"out {name} {epochs}"), *held])
        for weights, seconds in backbone_seconds(model, folder, dtype).items():
            runs[f"{dtype} {weights}"]["backbone_s"] = seconds
    return runs


def backbone_seconds(model: str, folder: Path, dtype: str) -> dict[str, float]:
    """Processor seconds of the backbone alone, by how its weights are held."""
    import torch

    from pac_core.backbones import load_backbone
    from pac_core.contracts.backbone import BackboneSource
    from pac_core.encoding import load_tokenizer
    from pac_core.hardware import fast_products
    from pac_core.registry import Registry

    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    texts = sorted((json.loads(line)["text"] for line in lines), key=len)
    batches = [
        load_tokenizer(model)(texts[i : i + 200], padding=True, return_tensors="pt") for i in range(0, 1000, 200)
    ]
    kinds = ("native", "int8")
    backbones = {
        kind: load_backbone(BackboneSource(model, dtype=getattr(torch, dtype), weights=kind), Registry())
        for kind in kinds
    }
    best = dict.fromkeys(kinds, float("inf"))
    for kind in kinds * 5:
        backbone = backbones[kind]
        stream = backbone.info.streams[0]
        began = time.process_time()
        for batch in batches:
            with fast_products(batch.input_ids.numel()):
                boundary = backbone.embed(stream.name, batch.input_ids, batch.attention_mask.bool())
                for _ in backbone.run(stream.name, 0, stream.layers, boundary):
                    pass
        best[kind] = min(best[kind], time.process_time() - began)
    return best


def data_files(folder: Path) -> list[str]:
    return ["--train", str(folder / "train.jsonl"), "--eval", str(folder / "eval.jsonl")]


def finetune(model: str, folder: Path, epochs: int, cache: str) -> list[str]:
    """Arguments of a run of PAC, up to the folder of its output."""
    common = ["--model", model, *data_files(folder), "--epochs", str(epochs), "--cache-dir", str(folder / cache)]
    return ["-m", "pac_core.cli", "finetune", *common, "--json", "--output"]


def timed(arguments: list[str]) -> dict[str, Any]:
    """One run as a process: its own report, and its wall time."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], stdout=subprocess.PIPE, check=True)
    wall = time.perf_counter() - began
    report = json.loads(done.stdout)
    return {
        "train_s": sum(epoch["seconds"] for epoch in report["epochs"]),
        "wall_s": wall,
        "accuracy": report["eval"]["accuracy"],
        "peak_rss_mib": report["peak_rss_bytes"] / 2**20,
        "backbone": report.get("plan", {}).get("backbone_dtype", "float32"),
    }


def write_data(data: Path, rows: int, folder: Path) -> None:
    content = json.loads(data.read_text(encoding="utf-8"))
    chosen = random.Random(0).sample(content["train"], rows)
    for name, pairs in (("train", chosen), ("eval", content["val"])):
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
