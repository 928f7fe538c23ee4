"""``pac simulate``: what a plan would take, and the paper's tables beside our predictions."""

from __future__ import annotations

from typing import Annotated

import typer

from pac_core.cli.app import emit
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

EPILOG = "Example: pac simulate --paper icpp24"

PAPERS = ("icpp24",)


def simulate(
    paper: Annotated[str | None, typer.Option(help="Reproduce a paper's tables: icpp24.")] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Predict time and memory without running anything."""
    if paper is None:
        raise BadInput("nothing to simulate; give --paper icpp24")
    if paper not in PAPERS:
        raise BadInput(f"paper '{paper}' is not known; known: {', '.join(PAPERS)}")
    from pac_core.planning.icpp24.facts import Facts
    from pac_core.planning.icpp24.show import markdown
    from pac_core.planning.icpp24.tables import reproduce

    found = reproduce(Facts.load(), Registry(blocked=no_plugin or ()))
    if as_json:
        emit(found.to_json())
    else:
        print(markdown(found))


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(simulate)
