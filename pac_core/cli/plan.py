"""``pac plan``: which device would run what, how long it would take, and what other plans would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pac_core.cli.app import emit, say
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

if TYPE_CHECKING:
    from pac_core.contracts.cluster import Profile
    from pac_core.planning.asked import Side
    from pac_core.planning.profile_file import ProfileFile

EPILOG = (
    "Example: pac plan --model t5-base --cluster cluster.yaml --output plan.json\n\n"
    "Then: pac finetune --plan plan.json --devices cluster.yaml ...\n\n"
    "With a device more, another one less, or a faster network: --add attic=raspberry-pi-5, --remove kitchen, "
    "--link desk:kitchen=1000, --mbit 1000. Both plans are shown, and how much faster the run becomes.\n\n"
    "Devices that are not there have a card in the cluster file, as in card: jetson-nano."
)

Repeated = typer.Option(metavar="NAME=CARD", help="What if this device came too? May be repeated, as the next two.")


def plan(
    model: Annotated[str, typer.Option(help="The backbone; only its configuration is read.")],
    cluster: Annotated[Path, typer.Option(help="Cluster file; none of its devices has to be there.")],
    profile: Annotated[Path | None, typer.Option(help="What pac profile has measured of model and devices.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Planner (default: pac-hetero, or pac without it)")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the plan, for pac finetune --plan.")] = None,
    task: Annotated[
        Literal["auto", "classification", "regression", "seq2seq", "causal-lm"],
        typer.Option(help="What is predicted (auto: text, if the model has a decoder)."),
    ] = "auto",
    adapter: Annotated[str | None, typer.Option(help="Name of the adapter (default: parallel)")] = None,
    reduction: Annotated[int | None, typer.Option(min=1, help="k: side widths are the backbone's / k (8)")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="The backbone's numbers (float32)")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of an optimiser step (32)")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(min=1, help="Of one pass (default: the planner's)")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a sample (128)")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of an epoch.")] = 1000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs; all but the first train from the cache.")] = 3,
    add: Annotated[list[str] | None, Repeated] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="NAME", help="What if this device went?")] = None,
    link: Annotated[list[str] | None, typer.Option(metavar="A:B=MBIT", help="What if this link had MBIT?")] = None,
    mbit: Annotated[float | None, typer.Option(min=0.001, help="What if all links had so many Mbit/s?")] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run before it is made: stages, time, memory, and what other planners would do."""
    from pac_core.cluster import Cluster
    from pac_core.planning.asked import check_model, job_of
    from pac_core.planning.cluster_file import NO_MEASURES, cluster_to_plan
    from pac_core.planning.profile_file import read_profile
    from pac_core.planning.proposal import Proposal, propose
    from pac_core.planning.show_proposal import proposal_text, ratio_text
    from pac_core.planning.simulate import Work
    from pac_core.planning.supposed import Change, supposed

    registry = Registry(blocked=no_plugin or ())
