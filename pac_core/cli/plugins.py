"""``pac plugins``: what is installed, and where it came from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pac_core.cli.app import emit, say
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import KINDS, Registry

EPILOG = "Example: pac plugins stores"


def plugins(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}; all if left out.")] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """List plugins with the distribution and version each came from."""
    if kind is not None and kind not in KINDS:
        raise BadInput(f"plugin kind '{kind}' is not known; kinds: {', '.join(KINDS)}")
    registry = Registry(blocked=no_plugin or ())
    entries = registry.listing(kind)
    if as_json:
        rows = [{k: v for k, v in vars(e).items() if k != "factory"} for e in entries]
        emit({"plugins": rows, "broken": [asdict(b) for b in registry.broken], "blocked": sorted(registry.blocked)})
        return
    table = Table("kind", "name", "distribution", "version", "what")
    for entry in entries:
        table.add_row(entry.kind, entry.name, entry.distribution, entry.version, entry.summary)
    Console().print(table)
    for broken in registry.broken:
        say(f"warning: '{broken.entry_point}' of {broken.distribution} {broken.version} did not load: {broken.error}")


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(plugins)
