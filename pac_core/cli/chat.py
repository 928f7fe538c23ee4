"""``pac chat``: talk to a fine-tuned model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from pac_core.cli.app import emit, say
from pac_core.cli.options import Adapter, MaxLength, Model, NoPlugin
from pac_core.errors import BadInput
from pac_core.registry import Registry

EPILOG = (
    "Example: pac chat --adapter ./assistant. An empty line or Ctrl-D ends the chat.\n\n"
    "Not at a terminal: echo 'where is the torch?' | pac chat --adapter ./assistant"
)


def chat(
    adapter: Adapter,
    model: Model = None,
    max_length: MaxLength = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above 0 samples.")] = 0.0,
    no_plugin: NoPlugin = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the whole chat.")] = False,
) -> None:
    """Answer each line of input; text appears as it is generated."""
    from pac_core.runtime.serve import open_adapter  # torch takes seconds to import; --help shall not

    opened = open_adapter(adapter, model, Registry(blocked=no_plugin or ()), max_length=max_length)
    talk = opened.conversation(max_new_tokens=max_new_tokens, temperature=temperature)
    if sys.stdin.isatty():
        say("type a message; an empty line ends the chat")
    for line in _lines():
        try:
            for piece in talk.answer(line):
                if not as_json:
                    print(piece, end="", flush=True)
        except BadInput as error:
            if not sys.stdin.isatty():
                raise
            say(f"error: {error}")
            continue
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
    try:
        return sys.stdin.readline().strip()
    except UnicodeDecodeError as error:
        raise BadInput(f"stdin: not UTF-8 ({error.reason} at byte {error.start}); convert it with iconv") from error


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(chat)
