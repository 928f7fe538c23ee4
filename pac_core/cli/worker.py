"""``pac worker``: lend this device to the runs of another one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from pac_core.addresses import free_port, interface_address, interfaces, own_address, split_address
from pac_core.cli.app import say
from pac_core.cli.keys import Keys
from pac_core.cli.options import NoPlugin
from pac_core.contracts.meeting import MeetingOptions
from pac_core.control import MOST_THREADS
from pac_core.errors import BadInput
from pac_core.facts import facts_of_process
from pac_core.keys import KeyFolder, default_folder
from pac_core.machine import core_count
from pac_core.planning.cards import card
from pac_core.registry import Registry
from pac_core.worker import Worker, WorkerOptions

EPILOG = (
    "Example: pac worker --leader tcp://192.168.1.10:7077 --keys ./keys\n\n"
    "It may be started before the leader, and stays up between runs. Keys are made with 'pac keys new'; leader and "
    "workers must be on each other's allow-lists ('pac keys allow')."
)


def worker(
    leader: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="The leader, tcp://HOST:PORT; may be repeated.")
    ] = None,
    keys: Keys = None,
    name: Annotated[str | None, typer.Option(help="What to call this device (default: as in its keys).")] = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where to listen for the other devices: a host, tcp://HOST:PORT or an interface."
        ),
    ] = "",
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="Threads to compute with (default: all cores)")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder for the cache, in place of the leader's.")] = None,
    emulate: Annotated[
        str | None,
        typer.Option(metavar="CARD", help="Stand for a device such as jetson-nano: wait instead of computing."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End after one run.")] = False,
    discover: Annotated[bool, typer.Option("--discover", help="Find the leader in the local network (mDNS).")] = False,
    cluster: Annotated[str, typer.Option(help="The cluster, whose allow-list holds.")] = "home",
    transport: Annotated[str, typer.Option(help="Transport to meet the leader over.")] = "zmq",
    no_plugin: NoPlugin = None,
) -> None:
    """Wait for a leader and take part in its runs, one after another, until Ctrl-C."""
    if not (leader or discover):
        raise BadInput("give --leader tcp://HOST:PORT, or --discover to look for it in the local network")
    join = getattr(Registry(blocked=no_plugin or ()).get("transports", transport), "join_meeting", None)
    if join is None:
        raise BadInput(f"transport '{transport}' is not for workers that people start; choose zmq")
    stands_for = None if emulate is None else card(emulate)
    folder, host = keys or default_folder(), interface_address(listen) if listen in interfaces() else listen
    if host:
        free_port(split_address(host)[0] if host.startswith("tcp://") else host)  # or say that there is none
    options = WorkerOptions(
        keys=folder.absolute(),
        cluster=cluster,
        listen=host,
        threads=threads or core_count(),
        cache_dir=None if cache_dir is None else cache_dir.absolute(),
        once=once,
        blocked=tuple(no_plugin or ()),
        emulate=emulate,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    called = name or KeyFolder(folder).name_and_key()[0]
    meeting = join(MeetingOptions(leader or (), folder, cluster, discover, host if listen in interfaces() else ""))
    try:
        facts = facts_of_process(called, options.disk, options.threads)
        what = f"{facts.gflops:.0f} GFLOP/s" if stands_for is None else f"emulates {stands_for.title}"
        say(f"worker '{called}': {options.threads} threads, {what}")
        for address in leader or ():
            say_if_unreachable(address)
        with Worker(meeting, facts, options, say) as at_work:
            at_work.run()
    except KeyboardInterrupt:
        say("stopped")
        raise
    finally:
        meeting.close(0.0)


def say_if_unreachable(address: str) -> None:
    """Tell of a leader's host that is not known or has no way to it, which may change while the worker waits."""
    try:
        own_address(address)
    except BadInput as error:
        say(f"{error}; it is tried again until there is one")


def add(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EPILOG)(worker)
