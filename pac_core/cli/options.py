"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MOST_SAMPLES = 10**7
"""Samples that are planned for: each chunk of their entries is followed on its way."""

MOST_ROWS = 10**6
"""Samples of a mini-batch that is planned for: each of its micro-batches is played."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Adapter = Annotated[Path, typer.Option(help="Folder written by pac finetune.")]
Model = Annotated[str | None, typer.Option(help="The backbone, if it has moved since training.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Cut texts to this many tokens (default: as in training).")]
NoPlugin = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Leave out the plugin of this entry-point name; may be repeated."),
]
