"""Which plugins there are: discovery through entry points, look-up by name, blocking, listing."""

from __future__ import annotations

import copy
import difflib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import pluggy

from pac_core import hookspecs
from pac_core.errors import PluginConflict, UnknownPlugin
from pac_core.events import Event

log = logging.getLogger("pac")

KINDS = ("backbones", "adapters", "stores", "transports", "schedulers")
BLOCK_VARIABLE = "PAC_DISABLE_PLUGINS"

EXTRAS = {"lz4": 'pip install "pac-core[lz4]"', "zmq": 'pip install "pac-core[zmq]"'}
"""Names that come with an extra of this distribution, for the error that names what to install."""


@dataclass(frozen=True)
class Registration:
    """One name a plugin offers.

    Attributes:
        kind: ``"stores"``, ``"adapters"``, ...
        name: what users write.
        factory: called by the core to build the thing; its signature is in the hook's docstring.
        summary: one line for listings.
        distribution, version: where it came from.
    """

    kind: str
    name: str
    factory: Callable[..., Any]
    summary: str
    distribution: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that could not be loaded, set aside so that the rest works."""

    entry_point: str
    distribution: str
    version: str
    error: str


class Registry:
    """Every plugin that is installed and not blocked.

    Args:
        entry_points: those of group ``pac``; by default what is installed.
        blocked: entry-point names to leave out, on top of the environment variable ``PAC_DISABLE_PLUGINS``.

    Raises:
        PluginConflict: two distributions registered one name of one kind.
    """

    def __init__(
        self, entry_points: Iterable[metadata.EntryPoint] | None = None, *, blocked: Iterable[str] = ()
    ) -> None:
        found = metadata.entry_points(group=hookspecs.PROJECT) if entry_points is None else entry_points
        self.blocked = frozenset(blocked) | frozenset(filter(None, os.environ.get(BLOCK_VARIABLE, "").split(",")))
        self.broken: list[BrokenPlugin] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._registered: dict[tuple[str, str], Registration] = {}
        self._deaf: list[object] = []
        for entry_point in sorted(found, key=lambda e: (_distribution(e), e.name)):
            if entry_point.name not in self.blocked:
                self._load(entry_point)

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        version = entry_point.dist.version if entry_point.dist else "?"
        distribution = _distribution(entry_point)
        try:
            plugin = entry_point.load()
            self._manager.register(plugin, entry_point.name)
            self._manager.check_pending()
            self._collect(plugin, distribution, version)
        except PluginConflict:
            raise
        except Exception as error:  # a stranger's code may fail in any way
            if self._manager.has_plugin(entry_point.name):
                self._manager.unregister(name=entry_point.name)
            message = f"{type(error).__name__}: {error}"
            self.broken.append(BrokenPlugin(entry_point.name, distribution, version, message))

    def _collect(self, plugin: object, distribution: str, version: str) -> None:
        collected: list[Registration] = []
        for kind in KINDS:
            hook = getattr(plugin, f"pac_register_{kind}", None)
            if hook is None:
                continue

            def register(name: str, factory: Callable[..., Any], *, summary: str, kind: str = kind) -> None:
                collected.append(Registration(kind, name, factory, summary, distribution, version))

            hook(register=register)
        for entry in collected:
            other = self._registered.get((entry.kind, entry.name))
            if other is not None:
                raise PluginConflict(
                    f"two plugins register {entry.kind[:-1]} '{entry.name}': {other.distribution} {other.version} and "
                    f"{distribution} {version}; uninstall one, or block one with {BLOCK_VARIABLE} or --no-plugin"
                )
            self._registered[entry.kind, entry.name] = entry

    def get(self, kind: str, name: str) -> Callable[..., Any]:
        """The factory registered as ``name``.

        Raises:
            UnknownPlugin: nobody registered it; the text has the nearest names, all names, and what to install.
        """
        entry = self._registered.get((kind, name))
        if entry is None:
            raise UnknownPlugin(self._unknown(kind, name))
        return entry.factory

    def wrapped(self, wraps: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]) -> Registry:
        """This registry with other factories: for some kinds, what to make of each factory."""
        found = copy.copy(self)
        found._registered = {
            key: replace(entry, factory=wraps[entry.kind](entry.factory)) if entry.kind in wraps else entry
            for key, entry in self._registered.items()
        }
        return found

    def _unknown(self, kind: str, name: str) -> str:
        names = self.names(kind)
        near = difflib.get_close_matches(name, names, n=2)
        parts = [f"{kind[:-1]} '{name}' is not known"]
        if near:
            parts.append("did you mean " + " or ".join(f"'{n}'" for n in near) + "?")
        parts.append("installed: " + (", ".join(names) or "none"))
        if name in EXTRAS:
            parts.append(f"it comes with {EXTRAS[name]}")
        broken = [b for b in self.broken if name in (b.entry_point, b.distribution)] or self.broken
        parts += [
            f"plugin '{b.entry_point}' of {b.distribution} {b.version} failed to load ({b.error})" for b in broken
        ]
        if self.blocked:
            parts.append("blocked: " + ", ".join(sorted(self.blocked)))
        return "; ".join(parts)

    def names(self, kind: str) -> list[str]:
        """All registered names of ``kind``, sorted."""
        return sorted(n for k, n in self._registered if k == kind)

    def listing(self, kind: str | None = None) -> list[Registration]:
        """What is registered, of one kind or all, sorted by kind and name."""
        order = {k: i for i, k in enumerate(KINDS)}
        entries = (r for r in self._registered.values() if kind in (None, r.kind))
        return sorted(entries, key=lambda r: (order[r.kind], r.name))

    def tell(self, event: Event) -> None:
        """Call every ``pac_observe`` hook; one that fails is reported once and left out from then on."""
        for plugin in self._manager.get_plugins():
            observe = getattr(plugin, "pac_observe", None)
            if observe is None or plugin in self._deaf:
                continue
            try:
                observe(event=event)
            except Exception:
                self._deaf.append(plugin)
                log.exception("observer %s failed and is left out", self._manager.get_name(plugin))


def _distribution(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "(no distribution)"
