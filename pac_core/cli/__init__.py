"""The ``pac`` command: one module a command, each with a function that typer turns into it."""

from pac_core.cli.app import main

__all__ = ["main"]
