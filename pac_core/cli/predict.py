"""``pac predict``: labels, numbers or texts for new inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pac_core.cli.app import emit
from pac_core.errors import BadInput

EPILOG = "Example: pac predict --adapter ./reviews 'a moving and funny film' 'two hours I will never get back'"


def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; for pairs, separate the two with a TAB.")] = None,
    adapter: Annotated[Path, typer.Option(help="Folder written by pac finetune.")] = ...,  # type: ignore[assignment]
    data: Annotated[str | None, typer.Option(help="Data file to predict instead of texts.")] = None,
    model: Annotated[str | None, typer.Option(help="The backbone, if it has moved since training.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a generated answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above 0 samples.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Print the label, number or generated text for each input, one a line."""
    if bool(texts) == (data is not None):
        raise BadInput("give either texts or --data FILE, for example: pac predict --adapter DIR 'some text'")
    from pac_core.runtime.serve import open_adapter  # torch takes seconds to import; --help shall not

    opened = open_adapter(adapter, model)
    samples = opened.read(data) if data is not None else opened.samples(texts or [])
    found = opened.predict(samples, max_new_tokens=max_new_tokens, temperature=temperature)
    if as_json:
        emit({"predictions": found})
        return
    for answer in found:
        print(answer)


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(predict)
