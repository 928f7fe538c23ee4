"""``pac finetune``: train an adapter on your data."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pac_core.cli.app import emit, say
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.cli.progress import RunView
from pac_core.launch import leads_here
from pac_core.registry import Registry

if TYPE_CHECKING:
    from pac_core.finetune import RunResult

EPILOG = (
    "Example: pac finetune --model ./all-MiniLM-L6-v2 --train reviews.tsv --eval held-out.tsv --output ./reviews\n\n"
    "The same from a file: pac finetune run.yaml --set optimizer.lr=0.001\n\n"
    "Data columns are found by name (text, label; sentence1, sentence2, label; prompt, completion; messages; ...); "
    "--set columns.text=body maps others. Every key of the configuration can be set with --set. "
    "After Ctrl-C the same command with --resume goes on."
)


def finetune(
    config: Annotated[Path | None, typer.Argument(help="YAML configuration; flags override it.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of the model.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Training data: .jsonl, .csv, .tsv, .json or a data set id.")
    ] = None,
    eval_file: Annotated[str | None, typer.Option("--eval", help="Evaluation data.")] = None,
    task: Annotated[
        str | None, typer.Option(help="auto, classification, regression, seq2seq or causal-lm (default: auto)")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the result (default: pac-output)")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data (default: 3)")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (default: 0.002)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of an optimiser step (default: 32)")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Samples of one pass (default: all of a batch)")] = None,
    max_length: Annotated[int | None, typer.Option(help="Cut texts to this many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation, order and dropout (default: 0)")] = None,
    adapter: Annotated[str | None, typer.Option(help="Name of the adapter (default: parallel)")] = None,
    reduction: Annotated[int | None, typer.Option(help="k: side widths are the backbone's / k (default: 8)")] = None,
    store: Annotated[str | None, typer.Option(help="Cache store: disk, memory, lz4+disk, ... (default: disk)")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Cache folder (default: below the user's cache)")] = None,
    cache_dtype: Annotated[
        str | None, typer.Option(help="float32 (exact), bfloat16 or int8 (default: bfloat16)")
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(help="Transport between devices: local, zmq, torch under torchrun, ... (default: local)"),
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="Processes of this machine that train, or a cluster file (default: 1)")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Planner of stages: pipeline, data-parallel, ...")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json of pac plan, or of a former run.")] = None,
    emulate: Annotated[
        str | None,
        typer.Option(metavar="CARD", help="Wait as devices such as jetson-nano would compute; learns nothing."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any configuration key; may be repeated.")
    ] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on your data: the backbone runs once, later epochs read the cache."""
    flags: dict[str, Any] = {
        "model": model,
        "train": train,
        "eval": eval_file,
        "task": task,
        "output": output,
        "epochs": epochs,
        "optimizer.lr": lr,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "max_length": max_length,
        "seed": seed,
        "adapter.name": adapter,
        "adapter.reduction": reduction,
        "cache.store": store,
        "cache.dir": cache_dir,
        "cache.dtype": cache_dtype,
        "transport": transport,
        "devices": devices,
        "scheduler": scheduler,
        "plan": plan,
        "emulate": emulate,
        "resume": resume or None,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    leads = leads_here()
    with RunView(None if leads else silence()) as view:
        try:
            result = _run(config, settings or [], given, Registry(blocked=no_plugin or ()), view)
        except KeyboardInterrupt:
            if leads:
                say("stopped; the same command with --resume goes on from here")
            raise
    if not leads:
        return
    if as_json:
        emit(result.metrics)
        return
    if result.metrics["eval"]:
        Console().print(result_table(result.metrics))
    if result.metrics.get("emulated"):
        say(f"nothing was trained; times and bytes are in {result.output}/metrics.json and report.html")
        return
    say(f"saved to {result.output}; try: pac predict --adapter {result.output} TEXT")


def _run(
    config: Path | None, settings: list[str], flags: dict[str, Any], registry: Registry, view: RunView
) -> RunResult:
    from pac_core.config import RunConfig, parse_setting  # torch takes seconds to import; --help shall not
    from pac_core.finetune import FineTuner

    overrides = dict(parse_setting(text) for text in settings) | flags
    run = RunConfig.build({}, overrides) if config is None else RunConfig.load(config, overrides)
    return FineTuner(run, registry=registry, observers=[view]).run()


def silence() -> Console:
    """A console that shows nothing, for a device that another one leads; of what is logged only errors are left."""
    logging.getLogger("pac").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return Console(quiet=True, force_terminal=False)


def result_table(metrics: dict[str, Any]) -> Table:
    """Evaluation before and after, as a table."""
    table = Table("metric", "before", "after", title="evaluation")
    for name, value in metrics["eval"].items():
        before = metrics["eval_before"].get(name)
        table.add_row(name, "" if before is None else f"{before:.4f}", f"{value:.4f}")
    return table


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(finetune)
