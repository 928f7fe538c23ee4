"""``pac simulate``: what a plan would take, and the paper's tables beside our predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pac_core.cli.app import emit
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

EPILOG = "Example: pac simulate --plan plan.json --model t5-base --card jetson-nano --mbit 1000. Or: --paper icpp24"

PAPERS = ("icpp24",)


def simulate(
    plan: Annotated[Path | None, typer.Option(help="Plan to simulate: plan.json of a run.")] = None,
    paper: Annotated[str | None, typer.Option(help="Instead, reproduce a paper's tables: icpp24.")] = None,
    model: Annotated[str | None, typer.Option(help="The plan's backbone; only its configuration is read.")] = None,
    reduction: Annotated[int, typer.Option(min=1, help="Factor by which the side network is narrower.")] = 8,
    card: Annotated[
        list[str] | None,
        typer.Option(metavar="[DEVICE=]CARD", help="What a device is, or all that are not named; may be repeated."),
    ] = None,
    mbit: Annotated[float, typer.Option(min=0.001, help="Mbit/s of links.")] = 1000.0,
    latency: Annotated[float, typer.Option(min=0.0, help="Milliseconds until a message arrives.")] = 1.0,
    shared: Annotated[bool, typer.Option("--shared", help="All share one medium, as over Wi-Fi.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sample.")] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Samples of an epoch.")] = 1000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs; all but the first train from the cache.")] = 3,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Predict time and memory without running anything."""
    registry = Registry(blocked=no_plugin or ())
    if (plan is None) == (paper is None):
        raise BadInput(f"give either --plan FILE or --paper {'|'.join(PAPERS)}")
    if paper is not None:
        _reproduce(paper, registry, as_json)
        return
    if model is None or not card:
        raise BadInput("a plan does not say what it runs on; give --model and at least one --card")
    from pac_core.contracts.adapter import AdapterConfig
    from pac_core.contracts.cluster import Link
    from pac_core.planning.show import report
    from pac_core.planning.simulate import Work
    from pac_core.planning.what_if import WhatIf, simulate_file

    assert plan is not None
    what = WhatIf(card, Link(mbit * 1e6, latency / 1e3), shared, tokens, Work(samples, epochs))
    found = simulate_file(plan, model, AdapterConfig(reduction=reduction), what, registry)
    if as_json:
        emit(found.to_json())
    else:
        print(report(found))


def _reproduce(paper: str, registry: Registry, as_json: bool) -> None:
    if paper not in PAPERS:
        raise BadInput(f"paper '{paper}' is not known; known: {', '.join(PAPERS)}")
    from pac_core.planning.icpp24.facts import Facts
    from pac_core.planning.icpp24.show import markdown
    from pac_core.planning.icpp24.tables import reproduce

    found = reproduce(Facts.load(), registry)
    if as_json:
        emit(found.to_json())
    else:
        print(markdown(found))


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(simulate)
