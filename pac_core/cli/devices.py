"""``pac devices``: what this device is, or those of a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pac_core.cli.app import emit
from pac_core.cli.keys import host_name
from pac_core.cli.options import AsJson, NoPlugin
from pac_core.cluster import Cluster
from pac_core.control import readable
from pac_core.facts import DeviceFacts, facts_here
from pac_core.registry import Registry
from pac_core.runtime.gathering import Gathering, LinkFacts, facts_given

EPILOG = "Example: pac devices. Then: pac devices --cluster cluster.yaml --json"


def devices(
    cluster: Annotated[Path | None, typer.Option(help="Cluster file; without it, only this device is shown.")] = None,
    no_plugin: NoPlugin = None,
    as_json: AsJson = False,
) -> None:
    """Show devices: cores, memory, disk, accelerator, speed, and the link to each."""
    if cluster is None:
        rows = [row(host_name(), "here", facts_here(host_name(), Path.home()))]
    else:
        rows = _rows(Cluster.load(cluster), Registry(blocked=no_plugin or ()))
    if as_json:
        emit({"devices": rows})
    else:
        _print(rows)
    if any(row["state"] in ("missing", "refused") for row in rows):
        raise typer.Exit(1)


def _rows(cluster: Cluster, registry: Registry) -> list[dict[str, Any]]:
    """A row for the leader and each device of the cluster file."""
    with Gathering(cluster, registry) as gathering:
        own = facts_here(gathering.name, Path.home(), cluster.device(gathering.name).threads)
        own = facts_given(cluster, own, gathering.name)
        found = gathering.gather()
        links = {name: gathering.measure(name) for name in gathering.workers if name in found.here}
        facts = gathering.facts()
        rows = [row(gathering.name, "leader", own)]
        for name in gathering.workers:
            if name in facts:
                rows.append(row(name, "ready", facts[name], links[name]))
            else:
                why = found.refused.get(name, f"it did not come in {cluster.wait:.0f} s")
                rows.append(row(name, "refused" if name in found.refused else "missing", why=why))
    return rows


def row(
    name: str, state: str, facts: DeviceFacts | None = None, link: LinkFacts | None = None, why: str | None = None
) -> dict[str, Any]:
    """What ``--json`` says of a device; its name on the allow-list is the one that counts."""
    told = {} if facts is None else facts.model_dump()
    return {**told, "name": name, "state": state, "why": why, "link": None if link is None else asdict(link)}


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("device", "state", "cores", "memory free", "disk free", "GFLOP/s", "accelerator", "link")
    for device in rows:
        if "cores" not in device:
            table.add_row(device["name"], device["state"])
            continue
        link = device["link"]
        speed = f"{link['bytes_per_second'] / 1e6:.0f} MB/s, {1000 * link['latency_seconds']:.1f} ms" if link else ""
        free = device["memory_free_bytes"]
        table.add_row(
            device["name"],
            device["state"],
            str(device["cores"]),
            f"{'?' if free is None else f'{free / 1e9:.1f}'} of {device['memory_bytes'] / 1e9:.1f} GB",
            f"{device['disk_free_bytes'] / 1e9:.1f} GB",
            f"{device['gflops']:.0f}",
            readable(device["accelerator"]),
            speed,
        )
    console = Console(markup=False, emoji=False)
    console.print(table)
    for device in rows:
        if device["why"]:
            console.print(f"{device['name']}: {device['why']}", soft_wrap=True)
        if device.get("emulates"):
            console.print(f"{device['name']}: emulates {readable(device['emulates'])}", soft_wrap=True)


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(devices)
