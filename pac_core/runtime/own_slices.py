"""What a worker has of the frozen backbone on its own disk; see `pac_core.runtime.slices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import Backbone, BackboneSource
from pac_core.errors import RunFailed
from pac_core.registry import Registry
from pac_core.runtime.slice_offer import Offer


class OwnSlices:
    """Opens layers of the leader's backbone from this device's disk; what is held there was checked once.

    Args:
        path: the folder of the checkpoint, or of the slices.
        offer: what the leader has told.
        registry: the plugins.
        whole: whether ``path`` has all layers.
        opened: the slices of the offer, in their order; each is given away once.
    """

    def __init__(
        self, path: Path, offer: Offer, registry: Registry, whole: bool, opened: Sequence[Backbone] = ()
    ) -> None:
        self._path = path
        self._offer = offer
        self._registry = registry
        self._whole = whole
        self._opened = {str(part.layers): backbone for part, backbone in zip(offer.slices, opened)}

    def __call__(self, layers: Mapping[str, tuple[int, int]] | None = None) -> Backbone:
        """The backbone with these layers, as in `BackboneSource`.

        Raises:
            RunFailed: they are not on this device.
        """
        held = None if layers is None else {stream: (first, last) for stream, (first, last) in layers.items()}
        opened = self._opened.pop(str(held), None)
        if opened is not None:
            return opened
        offer = self._offer
        if held != {} and not self._whole and held not in [part.layers for part in offer.slices]:
            raise RunFailed(
                f"an entry of its cache is damaged or gone, and it has only {offer.slice_name} of {offer.model} to "
                "compute it with; --resume computes it in the stages again"
            )
        return open_layers(self._path, offer, self._registry, held)


def open_layers(path: Path, offer: Offer, registry: Registry, layers: dict[str, tuple[int, int]] | None) -> Backbone:
    """Layers of the checkpoint at ``path``; its fingerprint is made of what is held, and of the leader's digests."""
    source = BackboneSource(path, layers=layers, dtype=offer.torch_dtype, digests=offer.digests, weights=offer.held_as)
    return load_backbone(source, registry)
