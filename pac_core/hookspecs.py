"""The hook specifications: everything a plugin can add to PAC.

A plugin is a module or object with some of the functions below, marked with ``hookimpl`` and named by an entry point of
the group ``pac`` in its distribution::

    # pyproject.toml
    [project.entry-points.pac]
    my-store = "my_package.plugin"

    # my_package/plugin.py
    from pac_core.hookspecs import hookimpl

    @hookimpl
    def pac_register_stores(register):
        register("my-store", make_store, summary="Keeps entries in ...")

The ``register_*`` hooks are called once, when the registry is first used, in the order of distribution names. A hook
must be cheap: register a function that imports what it needs when it is called. A name may be registered once for a
kind; a second distribution that registers it is an error that names both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from pac_core.events import Event

PROJECT = "pac"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """What a ``pac_register_*`` hook is given: call it once for each name."""

    def __call__(self, name: str, factory: Callable[..., object], *, summary: str) -> None:
        """Offer ``factory`` under ``name``; ``summary`` is the line that ``pac plugins`` prints."""


@hookspec
def pac_register_backbones(register: Register) -> None:
    """Offer model families: ``register(model_type, factory, summary=...)``, once for each transformers ``model_type``.

    ``factory(source: BackboneSource) -> Backbone``; see `pac_core.contracts.backbone.Backbone`.
    """


@hookspec
def pac_register_adapters(register: Register) -> None:
    """Offer side networks. ``factory(backbone: Backbone, config: AdapterConfig, target: str) -> SideNetwork``.

    See `pac_core.contracts.adapter.SideNetwork`.
    """


@hookspec
def pac_register_stores(register: Register) -> None:
    """Offer cache stores. ``factory(options: StoreOptions) -> Store``; see `pac_core.contracts.store.Store`."""


@hookspec
def pac_register_transports(register: Register) -> None:
    """Offer transports between devices. ``factory(options: TransportOptions) -> Transport``.

    A factory of a transport whose devices know each other by keys also has ``new_keys() -> KeyPair``, which ``pac keys
    new`` calls; such a transport has addresses ``tcp://HOST:PORT``. One whose devices people start by hand has
    ``host_meeting`` and ``join_meeting``, both ``(options: MeetingOptions) -> Meeting``; one whose processes torchrun
    starts has ``launcher``, the text of a command that does so. See `pac_core.contracts.transport.Transport`,
    `pac_core.contracts.meeting.Meeting` and `pac_core.keys.KeyPair`.
    """


@hookspec
def pac_register_schedulers(register: Register) -> None:
    """Offer schedulers. ``factory() -> Scheduler``; see `pac_core.contracts.scheduler.Scheduler`."""


@hookspec
def pac_observe(event: Event) -> None:
    """Told of a run's progress: see `pac_core.events`. Called once an epoch and at most a few times a second for steps,
    never from inside a step; the statuses of several devices come meanwhile, from a thread of their own, but no two
    calls overlap. An exception is logged once and does not stop the run."""
