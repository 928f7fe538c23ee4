"""``pac chat``: talk to a fine-tuned model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pac_core.cli.app import emit, say

EPILOG = "Example: pac chat --adapter ./assistant. An empty line or Ctrl-D ends the chat."


def chat(
    adapter: Annotated[Path, typer.Option(help="Folder written by pac finetune.")],
    model: Annotated[str | None, typer.Option(help="The backbone, if it has moved since training.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above 0 samples.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the whole chat.")] = False,
) -> None:
    """Answer each line of input; text appears as it is generated."""
    from pac_core.runtime.serve import open_adapter  # torch takes seconds to import; --help shall not

    talk = open_adapter(adapter, model).conversation(max_new_tokens=max_new_tokens, temperature=temperature)
    if sys.stdin.isatty():
        say("type a message; an empty line ends the chat")
    for line in _lines():
        for piece in talk.answer(line):
            if not as_json:
                print(piece, end="", flush=True)
        if not as_json:
            print(flush=True)
    if as_json:
        emit({"messages": [{"role": m.role, "content": m.content} for m in talk.messages]})


def _lines() -> Iterator[str]:
    """Lines of stdin up to the first empty one."""
    return iter(_next_line, "")


def _next_line() -> str:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(chat)
