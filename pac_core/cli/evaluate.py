"""``pac evaluate``: score a saved adapter on a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pac_core.cli.app import emit

EPILOG = "Example: pac evaluate --adapter ./reviews --data held-out.tsv"


def evaluate(
    adapter: Annotated[Path, typer.Option(help="Folder written by pac finetune.")],
    data: Annotated[str, typer.Option(help="Data with labels or answers.")],
    model: Annotated[str | None, typer.Option(help="The backbone, if it has moved since training.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one pass.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a generated answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Score a saved adapter on a data file."""
    from pac_core.runtime.serve import open_adapter  # torch takes seconds to import; --help shall not

    metrics = open_adapter(adapter, model).score(data, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if as_json:
        emit({"adapter": str(adapter), "data": data, "eval": metrics})
        return
    table = Table("metric", "value", title=str(adapter))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(evaluate)
