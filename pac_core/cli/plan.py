"""``pac plan``: which device would run what, how long it would take, and what other planners would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pac_core.cli.app import emit, say
from pac_core.cli.options import MOST_ROWS, MOST_SAMPLES, AsJson, NoPlugin
from pac_core.registry import Registry

if TYPE_CHECKING:
    from pac_core.planning.proposal import Proposal

EPILOG = (
    "Example: pac plan --model t5-base --cluster cluster.yaml --output plan.json\n\n"
    "Then: pac finetune --plan plan.json --devices cluster.yaml --model t5-base --train FILE\n\n"
    "What if a device came, one went, a link or all of them were faster: --add attic=raspberry-pi-5, --remove kitchen, "
    "--link desk:kitchen=1000, --mbit 1000. Both plans are shown, and how much faster a run becomes.\n\n"
    "Devices that are not there have a card in the cluster file, as in card: jetson-nano."
)


UNREAD = "none"
"""Stands for the training data, of which a plan needs no more than --samples and --tokens."""


def plan(
    model: Annotated[str, typer.Option(help="The backbone; only its configuration is read.")],
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster file; no device has to be there. The first one leads.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="What pac profile has measured; its devices are taken without --cluster.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Planner (default: that of the quickest run)")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the plan of the cluster as it is.")] = None,
    task: Annotated[
        str | None, typer.Option(help="As for pac finetune (default: to write text, if the model has a decoder)")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Name of the adapter (default: parallel)")] = None,
    reduction: Annotated[int | None, typer.Option(help="k: side widths are the backbone's / k (default: 8)")] = None,
    fill: Annotated[str | None, typer.Option(help="prefill or train-while-fill (default: prefill)")] = None,
    cache_dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or int8 (default: bfloat16)")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of the backbone (default: float32)")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=MOST_ROWS, help="Samples of an optimiser step (default: 32)")
    ] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Samples of one pass (default: the planner's)")] = None,
    epochs: Annotated[int | None, typer.Option(help="All but the first train from the cache (default: 3)")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a sample (default: 128)")] = None,
    samples: Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="Samples of an epoch.")] = 1000,
    add: Annotated[
        list[str] | None, typer.Option(metavar="NAME=CARD", help="What if this device came too? May be repeated.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What if this device went? May be repeated.")
    ] = None,
    link: Annotated[
        list[str] | None, typer.Option(metavar="A:B=MBIT", help="What if this link had MBIT/s? May be repeated.")
    ] = None,
    mbit: Annotated[
        float | None, typer.Option(min=0.001, max=1e9, help="What if all links had so many Mbit/s?")
    ] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run before it is made: stages, time, memory, and what other planners would do."""
    from pac_core.config import RunConfig
    from pac_core.files import check_writable_file, write_json
    from pac_core.planning.asked import Question, answer
    from pac_core.planning.show_proposal import answer_text
    from pac_core.planning.supposed import Change

    flags: dict[str, Any] = {
        "model": model,
        "train": UNREAD,
        "task": task,
        "adapter.name": adapter,
        "adapter.reduction": reduction,
        "fill": fill,
        "cache.dtype": cache_dtype,
        "dtype": dtype,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "epochs": epochs,
        "scheduler": scheduler,
    }
    config = RunConfig.build({}, {key: value for key, value in flags.items() if value is not None})
    if output is not None:
        check_writable_file(output, "--output")
    change = Change(add or (), remove or (), link or (), mbit)
    asked = Question(config, cluster, profile, tokens, samples, change)
    found = answer(asked, Registry(blocked=no_plugin or ()))
    if output is not None and found.found is not None:
        write_json(output, found.found.chosen.plan.to_json())
        say(f"the plan is in {output}; {_next_step(found.found, output, cluster)}")
    if as_json:
        emit(found.to_json())
    else:
        print(answer_text(found, change))


def _next_step(found: Proposal, output: Path, cluster: Path | None) -> str:
    """What to do with a plan."""
    leader = found.cluster.devices[0].name
    if leader in found.left_out:
        return f"no run can follow it, since {leader} leads and has no part in it; choose another --scheduler"
    lacking = found.chosen.out_of_memory
    if lacking:
        return f"{lacking[0].device} has too little memory for it; choose another --scheduler, or --remove the device"
    return f"use it with pac finetune --plan {output} --devices {cluster or 'FILE'}"


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(plan)
