"""``pac evaluate``: how good a saved adapter is on a data file."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pac_core.cli.app import emit
from pac_core.cli.options import Adapter, AsJson, MaxLength, Model, NoPlugin
from pac_core.registry import Registry

EPILOG = "Example: pac evaluate --adapter ./reviews --data held-out.tsv"


def evaluate(
    adapter: Adapter,
    data: Annotated[str, typer.Option(help="Data with labels or answers, in the form of the training data.")],
    model: Model = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one pass.")] = 32,
    max_length: MaxLength = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a generated answer.")] = 64,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Score a saved adapter on a data file: accuracy, correlation, or perplexity and overlap of generated answers."""
    from pac_core.runtime.serve import open_adapter  # torch takes seconds to import; --help shall not

    opened = open_adapter(adapter, model, Registry(blocked=no_plugin or ()), max_length=max_length)
    metrics = opened.score(data, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if as_json:
        emit({"adapter": str(adapter), "data": data, "eval": metrics})
        return
    table = Table("metric", "value", title=escape(str(adapter)))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(evaluate)
