"""What the passes of a model take on an emulated device, by the cost model that plans and simulations go by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Self

from pac_core.contracts.cluster import DeviceProfile, Job, Profile
from pac_core.emulated.clock import Clock
from pac_core.planning.cost import FORWARD, Costs, costs, slice_of

LENGTHS = 4096
"""Combinations of rows' lengths whose costs are kept."""


class Pace:
    """Waits for as long as a device computes a layer for rows of given lengths.

    Args:
        device: the emulated device.
        profile: of the model.
        clock: the device's.
    """

    def __init__(self, device: DeviceProfile, profile: Profile, clock: Clock) -> None:
        self._device = device
        self._profile = profile
        self._clock = clock
        self._back = device.backward_flops or device.flops
        counts = (len(layers) for layers in profile.layers.values())
        self._starts = dict(zip(profile.layers, accumulate(counts, initial=0)))
        self._costs = lru_cache(LENGTHS)(self._costs_of)
        self._entered: set[int] = set()

    def backbone(self, stream: str, layer: int, lengths: Sequence[int], sources: Sequence[int]) -> None:
        """The forward pass of backbone layer ``layer`` (from 0).

        Args:
            lengths: tokens of each row.
            sources: of each row of the stream that it attends to; empty without.
        """
        place = self._starts[stream] + layer
        found = self._costs(stream, sum(lengths) / len(lengths), sum(sources) / len(lengths))
        side = FORWARD * slice_of(found.side_flops, place, place + 1)
        work = slice_of(found.forward_flops, place, place + 1) - side
        self._entered.add(place)
        self._clock.spend(self._device.layer_s + len(lengths) * work / self._device.flops)

    def side(self, stream: str, layer: int, lengths: Sequence[int]) -> None:
        """The forward pass of the side layer that reads backbone layer ``layer``. With the backbone's it is one pass,
        which takes `DeviceProfile.layer_s` once."""
        place = self._starts[stream] + layer
        fixed = 0.0 if place in self._entered else self._device.layer_s
        self._entered.discard(place)
        self._clock.spend(fixed + FORWARD * self._side(stream, place, lengths) / self._device.flops)

    def back(self, stream: str, layer: int, lengths: Sequence[int]) -> None:
        """The backward pass of that side layer."""
        work = (1 - FORWARD) * self._side(stream, self._starts[stream] + layer, lengths)
        self._clock.spend(self._device.layer_s + work / self._back)

    def _side(self, stream: str, place: int, lengths: Sequence[int]) -> float:
        found = self._costs(stream, sum(lengths) / len(lengths), 0.0)
        return len(lengths) * slice_of(found.side_flops, place, place + 1)

    def _costs_of(self, stream: str, mean: float, source: float) -> Costs:
        lengths = {name: mean if name == stream else source for name in self._profile.layers}
        return costs(self._profile, Job(1, 1, mean, round(mean), lengths=lengths))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As of `Clock`."""
        return self
