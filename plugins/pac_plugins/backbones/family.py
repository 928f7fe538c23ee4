"""What loading needs to know about a model family, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pac_core.contracts.backbone import BackboneSource
from pac_core.errors import BadInput

Ranges = dict[str, tuple[int, int]]
"""Per stream the half-open range of layers; a stream that is left out is not held at all."""


@dataclass(frozen=True)
class Layout:
    """Where one stream lies in the bare model; names are module paths.

    Attributes:
        layers: the list of layers.
        count: field of the configuration with the number of layers.
        embeddings: what is needed before the first layer.
        final: what is needed after the last layer.
        always: single parameters that every slice needs.
    """

    layers: str
    count: str
    embeddings: tuple[str, ...]
    final: tuple[str, ...] = ()
    always: tuple[str, ...] = ()

    def index(self, name: str) -> int:
        """Number of the layer that the parameter ``name`` is in."""
        return int(name.removeprefix(f"{self.layers}.").split(".", 1)[0])


def _nothing(base: Any, config: Any) -> None: ...


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        streams: layout of each stream, the encoder first.
        prefixes: what task models put before the bare model's parameter names.
        embedding: parameter with the token embeddings.
        tied: other names under which a checkpoint may hold the same embeddings.
        rebuild: makes the buffers that checkpoints do not hold, after an initialisation without memory.
        kept: modules that every slice needs beside its layers, even where their layer is cut off.
        head: whether models of the family can have a language-model head named ``lm_head``.
        config_keys: fields that are ignored in other families' fingerprints but change this one's taps.
    """

    streams: Mapping[str, Layout]
    prefixes: tuple[str, ...]
    embedding: str
    tied: tuple[str, ...] = ()
    rebuild: Callable[[Any, Any], None] = _nothing
    kept: tuple[str, ...] = ()
    head: bool = True
    config_keys: frozenset[str] = field(default_factory=frozenset)

    def ranges(self, config: Any) -> Ranges:
        """All layers of all streams."""
        return {name: (0, getattr(config, layout.count)) for name, layout in self.streams.items()}

    def asked_ranges(self, source: BackboneSource, config: Any) -> Ranges:
        """The layers that ``source`` asks for; BadInput if there are no such layers."""
        whole = self.ranges(config)
        if source.layers is None:
            return whole
        for name, (first, last) in source.layers.items():
            if name not in whole or not 0 <= first <= last <= whole[name][1]:
                known = ", ".join(f"{stream} 0 to {count}" for stream, (_, count) in whole.items())
                raise BadInput(f"{source.path}: no layers [{first}, {last}) of stream '{name}'; there are {known}")
        return dict(source.layers)

    def needed(self, names: Iterable[str], config: Any, ranges: Ranges) -> Iterator[str]:
        """Those of ``names``, the parameters of the bare, whole model, that ``ranges`` consist of."""
        for name in names:
            if any(self._needs(stream, name, config, ranges[stream]) for stream in ranges):
                yield name

    def layer_of(self, name: str) -> tuple[str, int] | None:
        """Stream and layer of a parameter; None where it belongs to no single layer."""
        for stream, layout in self.streams.items():
            if name.startswith(f"{layout.layers}.") and name not in layout.always:
                return stream, layout.index(name)
        return None

    def _needs(self, stream: str, name: str, config: Any, held: tuple[int, int]) -> bool:
        layout = self.streams[stream]
        first, last = held
        if name.startswith(f"{layout.layers}."):
            return first <= layout.index(name) < last or name in layout.always
        if _within(name, layout.embeddings):
            return first == 0
        return _within(name, layout.final) and last == getattr(config, layout.count)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
