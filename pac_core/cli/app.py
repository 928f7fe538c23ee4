"""Puts the commands together and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import click
import typer

from pac_core.errors import PacError

COMMANDS = ("demo", "finetune", "evaluate", "predict", "chat", "cache", "plugins")
"""Modules of `pac_core.cli`; each has ``add(app)``, which adds its command or group to the app."""


def build() -> typer.Typer:
    """The typer application with every command."""
    app = typer.Typer(
        name="pac",
        help="Fine-tune a personal language model on your own devices and data.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        importlib.import_module(f"pac_core.cli.{name}").add(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``pac``: exit code 0, 2 for bad input, 1 for a failed run, 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; used by `main` and by tests."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        result = build()(arguments, standalone_mode=False)
    except PacError as error:
        say(f"error: {error}")
        return error.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("stopped; run the same command with --resume to go on")
        return 130
    return int(result or 0)


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object on stdout: the answer of a command run with ``--json``."""
    print(json.dumps(data, ensure_ascii=False, allow_nan=False, default=str), flush=True)
