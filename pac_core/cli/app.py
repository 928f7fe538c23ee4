"""Puts the commands together and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib import metadata
from typing import Annotated, Any, cast

import typer

from pac_core.errors import Followed, PacError

COMMANDS = (
    "demo",
    "finetune",
    "evaluate",
    "predict",
    "chat",
    "cache",
    "plugins",
    "keys",
    "worker",
    "devices",
    "profile",
    "plan",
    "simulate",
)
"""Modules of `pac_core.cli`; each has ``add(app)``, which adds its command or group to the app. None of them imports
torch before a command runs, so that ``--help`` and completion are quick."""

INTERRUPTED = 130

# Newer versions of typer carry a click of their own, and raise its errors; this is the base of them in all versions.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)


def build() -> typer.Typer:
    """The typer application with every command."""
    app = typer.Typer(
        name="pac",
        help="Fine-tune a personal language model on your own devices and data.",
        epilog="Example: pac demo. Then: pac finetune --help",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
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
        code = int(build()(arguments, standalone_mode=False, prog_name="pac") or 0)
        print(end="", flush=True)
    except Followed as error:
        return error.exit_code
    except PacError as error:
        return _failed(str(error), error.exit_code)
    except _UsageError as error:
        return _misused(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_unwritten()
        return 1
    except OSError as error:
        _drop_unwritten()
        return _failed(str(error), 1)
    return code


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object on stdout: the answer of a command run with ``--json``."""
    print(json.dumps(data, ensure_ascii=False, allow_nan=False, default=str), flush=True)


def _drop_unwritten() -> None:
    """Let output that cannot be written go, or the interpreter would complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(message: str, code: int) -> int:
    say(f"error: {' '.join(message.splitlines())}")
    return code


def _misused(error: Any) -> int:
    """Say what is wrong with the command line; without a message the help has been printed already."""
    message = error.format_message().strip().rstrip(".")
    if "Usage:" in message:  # the help itself, asked for by giving no arguments
        say(message)
    elif message:
        where = error.ctx.command_path if error.ctx else "pac"
        say(f"error: {' '.join(message.split())}; see: {where} --help")
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"pac {metadata.version('pac-core')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of ``pac`` itself."""
