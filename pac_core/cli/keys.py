"""``pac keys``: this device's keys, and which devices it lets take part."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from pac_core.cli.app import emit, say
from pac_core.cli.options import AsJson
from pac_core.errors import BadInput
from pac_core.keys import KeyFolder, default_folder, read_public
from pac_core.registry import Registry

Keys = Annotated[
    Path | None, typer.Option("--keys", help="Folder of keys; default $PAC_KEYS_DIR, else ~/.config/pac/keys.")
]


def new(
    keys: Keys = None,
    name: Annotated[str | None, typer.Option(help="Name of this device (default: its host name).")] = None,
    transport: Annotated[str, typer.Option(help="The transport that the keys are for.")] = "zmq",
    as_json: AsJson = False,
) -> None:
    """Make this device's keys."""
    new_keys = getattr(Registry().get("transports", transport), "new_keys", None)
    if new_keys is None:
        raise BadInput(f"transport '{transport}' uses no keys")
    folder, called = KeyFolder(keys or default_folder()), name or host_name()
    public = folder.make(called, new_keys)
    if as_json:
        emit({"keys": str(folder.path), "name": called, "public": public})
        return
    print(public)
    say(f"give {folder.path / 'device.pub'} to the other devices; there: pac keys allow FILE")


def allow(
    key: Annotated[str, typer.Argument(help="A device.pub file of another device, or the public key in it.")],
    keys: Keys = None,
    name: Annotated[str | None, typer.Option(help="Name of that device (default: the one in the file).")] = None,
    cluster: Annotated[str, typer.Option(help="The cluster that it may take part in.")] = "home",
    as_json: AsJson = False,
) -> None:
    """Let another device take part in a cluster."""
    folder = KeyFolder(keys or default_folder())
    if key.endswith(".pub") and not Path(key).is_file():
        raise BadInput(f"{key}: no such file; it is made by 'pac keys new' at the other device")
    public, called = read_public(Path(key)) if Path(key).is_file() else (key, "")
    if not (name or called):
        raise BadInput("a key that comes without a file needs a name: --name NAME")
    folder.allow(public, name or called, cluster)
    if as_json:
        emit({"keys": str(folder.path), "cluster": cluster, "name": name or called, "public": public})
        return
    lists = folder.path / "allowed"
    say(f"{name or called} may take part in '{cluster}'; to take that back, remove its file in {lists}")


def list_(keys: Keys = None, as_json: AsJson = False) -> None:
    """List this device's public key and the devices on each allow-list."""
    folder = KeyFolder(keys or default_folder())
    name, public = folder.name_and_key()
    clusters = {cluster: {n: key for key, n in folder.allowed(cluster).items()} for cluster in folder.clusters()}
    if as_json:
        emit({"keys": str(folder.path), "name": name, "public": public, "allowed": clusters})
        return
    table = Table("cluster", "device", Column("public key", no_wrap=True))
    table.add_row("", f"{name} (this one)", public)
    for cluster, devices in clusters.items():
        for device, key in devices.items():
            table.add_row(cluster, device, key)
    Console(markup=False, emoji=False).print(table)


def add(app: typer.Typer) -> None:
    """Add the command group to ``app``."""
    group = typer.Typer(
        help="Keys of this device, and of those it works with.",
        epilog="Example: pac keys new. Then: pac keys allow laptop.pub",
        no_args_is_help=True,
    )
    group.command("new", epilog="Example: pac keys new --keys ./keys --name kitchen")(new)
    group.command("allow", epilog="Example: pac keys allow laptop.pub --cluster home")(allow)
    group.command("list", epilog="Example: pac keys list --json")(list_)
    app.add_typer(group, name="keys")


def host_name() -> str:
    """What to call this device."""
    return re.sub(r"[^0-9a-zA-Z._\-]", "", platform.node()).lstrip(".-")[:64] or "device"
