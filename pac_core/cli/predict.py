"""``pac predict``: labels, numbers or texts for new inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from pac_core.cli.app import emit
from pac_core.cli.options import Adapter, AsJson, MaxLength, Model, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

EPILOG = (
    "Example: pac predict --adapter ./reviews 'a moving and funny film' 'two hours I will never get back'\n\n"
    "A file: pac predict --adapter ./reviews --data new.tsv --json"
)


def predict(
    adapter: Adapter,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; of a pair both in one argument, separated by a TAB.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data file to predict instead of texts; needs no labels.")] = None,
    model: Model = None,
    max_length: MaxLength = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a generated answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above 0 samples.")] = 0.0,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Print the label, number or generated text for each input, one a line."""
    if bool(texts) == (data is not None):
        raise BadInput("give either texts or --data FILE, for example: pac predict --adapter DIR 'some text'")
    from pac_core.runtime.serve import open_adapter  # torch takes seconds to import; --help shall not

    opened = open_adapter(adapter, model, Registry(blocked=no_plugin or ()), max_length=max_length)
    samples = opened.samples(texts or []) if data is None else opened.read(data)
    found = opened.predict(samples, max_new_tokens=max_new_tokens, temperature=temperature)
    if as_json:
        emit({"predictions": found})
        return
    for answer in found:
        print(f"{answer:.6g}" if isinstance(answer, float) else answer)


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(predict)
