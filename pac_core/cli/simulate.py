"""``pac simulate``: what a plan would take, and the paper's tables beside our predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pac_core.cli.app import emit
from pac_core.cli.options import MOST_ROWS, MOST_SAMPLES, AsJson, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

if TYPE_CHECKING:
    from pac_core.contracts.adapter import AdapterConfig
    from pac_core.planning.icpp24.facts import Facts
    from pac_core.planning.what_if import WhatIf

EPILOG = "Example: pac simulate --plan plan.json --model t5-base --card jetson-nano --mbit 1000. Or: --paper icpp24"

PAPERS = ("icpp24", "icpp24-beyond")

Fill = Literal["prefill", "train-while-fill"]
CacheFormat = Literal["float32", "bfloat16", "int8"]


def simulate(
    plan: Annotated[Path | None, typer.Option(help="Plan to simulate: plan.json of a run.")] = None,
    paper: Annotated[
        str | None, typer.Option(help="Instead, a paper's tables: icpp24, or icpp24-beyond for what our runs add.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Instead, plan with this scheduler for each number of --devices.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Numbers of devices, such as 1-8 or 1,2,4.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The backbone; only its configuration is read.")] = None,
    reduction: Annotated[int, typer.Option(min=1, help="Factor by which the side network is narrower.")] = 8,
    card: Annotated[
        list[str] | None,
        typer.Option(metavar="[DEVICE=]CARD", help="What a device is, or all that are not named; may be repeated."),
    ] = None,
    mbit: Annotated[float, typer.Option(min=0.001, max=1e9, help="Mbit/s of links.")] = 1000.0,
    latency: Annotated[float, typer.Option(min=0.0, max=1e6, help="Milliseconds until a message arrives.")] = 1.0,
    shared: Annotated[bool, typer.Option("--shared", help="All share one medium, as over Wi-Fi.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sample.")] = 128,
    samples: Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="Samples of an epoch.")] = 1000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs; those after the fill train from the cache.")] = 3,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MOST_ROWS, help="Samples of a mini-batch, with --devices.")
    ] = 32,
    fill: Annotated[Fill, typer.Option(help="Whether the backbone runs ahead, or while the first epoch trains.")] = (
        "prefill"
    ),
    cache_dtype: Annotated[CacheFormat, typer.Option(help="Number format of cache entries.")] = "bfloat16",
    slow: Annotated[
        list[str] | None,
        typer.Option(metavar="DEVICE=FACTOR", help="A device that computes slower all the time; may be repeated."),
    ] = None,
    jitter: Annotated[
        float, typer.Option(min=0.0, max=3.0, help="Random slowness: sigma of a log-normal factor of every action.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of random slowness.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw it in this file: .svg, or .html for a page.")] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Predict time and memory without running anything."""
    registry = Registry(blocked=no_plugin or ())
    if sum(given is not None for given in (plan, paper, scheduler)) != 1:
        raise BadInput(f"give one of --plan FILE, --scheduler NAME --devices NUMBERS, --paper {'|'.join(PAPERS)}")
    if (scheduler is None) != (devices is None):
        raise BadInput("--scheduler NAME and --devices NUMBERS go together; a plan is for the devices that it names")
    if paper is not None:
        if plot is not None:
            raise BadInput("--plot draws a plan or throughput; leave it out with --paper")
        _tell(*_reproduced(paper, registry), as_json)
        return
    if model is None or not card:
        raise BadInput("nothing says what it runs on; give --model and at least one --card")
    from pac_core.contracts.adapter import AdapterConfig
    from pac_core.contracts.cluster import Link
    from pac_core.files import check_writable_file
    from pac_core.planning.slowness import Slowness, factors_of
    from pac_core.planning.what_if import WhatIf
    from pac_core.planning.work import Work
    from pac_core.report.simulated import check_ending

    if plot is not None:
        check_ending(plot)
        check_writable_file(plot, "--plot")
    slowness = Slowness(factors_of(slow or ()), jitter, seed)
    work = Work.of_run(samples, epochs, fill, cache_dtype, slowness)
    what = WhatIf(card, Link(mbit * 1e6, latency / 1e3), shared, tokens, work)
    adapter = AdapterConfig(reduction=reduction)
    if plan is not None:
        _tell(*_played(plan, model, adapter, what, registry, plot), as_json)
    else:
        assert scheduler is not None
        assert devices is not None
        _tell(*_scaled(devices, model, adapter, what, scheduler, batch_size, registry, plot), as_json)


Told = tuple[dict[str, Any], str]
"""An answer as plain data, and as text."""


def _tell(data: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        emit(data)
    else:
        print(text)


def _played(
    plan: Path, model: str, adapter: AdapterConfig, what: WhatIf, registry: Registry, plot: Path | None
) -> Told:
    from pac_core.planning.show import report
    from pac_core.planning.what_if import simulate_file
    from pac_core.report.simulated import write_timeline

    found = simulate_file(plan, model, adapter, what, registry)
    if plot is not None:
        write_timeline(plot, found)
    return found.to_json(), report(found)


def _scaled(
    devices: str,
    model: str,
    adapter: AdapterConfig,
    what: WhatIf,
    scheduler: str,
    batch_size: int,
    registry: Registry,
    plot: Path | None,
) -> Told:
    from pac_core.planning.scaling import counts_of, scale_model
    from pac_core.planning.show import rates
    from pac_core.report.simulated import write_rates

    found = scale_model(model, adapter, what, scheduler, batch_size, counts_of(devices), registry)
    if plot is not None:
        write_rates(plot, found)
    return {"scheduler": scheduler, "rates": [one.to_json() for one in found]}, rates(found)


def _reproduced(paper: str, registry: Registry) -> Told:
    if paper not in PAPERS:
        raise BadInput(f"paper '{paper}' is not known; known: {', '.join(PAPERS)}")
    from pac_core.planning.icpp24.facts import Facts
    from pac_core.planning.icpp24.show import markdown
    from pac_core.planning.icpp24.tables import reproduce

    facts = Facts.load()
    if paper == "icpp24-beyond":
        return _beyond(facts, registry)
    found = reproduce(facts, registry)
    return found.to_json(), markdown(found)


def _beyond(facts: Facts, registry: Registry) -> Told:
    from pac_core.planning.icpp24.beyond import beyond
    from pac_core.planning.icpp24.calibrate import CELLS, calibrated
    from pac_core.planning.icpp24.show import beyond_markdown

    setting = calibrated(facts, registry)
    found = beyond(setting, facts, registry)
    data = {"calibrated_on": list(CELLS), "calibrated": vars(setting), "beyond": found.to_json()}
    return data, beyond_markdown(found)


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(simulate)
