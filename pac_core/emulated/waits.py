"""What the passes of a model take on an emulated device, by the profile that plans and simulations go by too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pac_core.contracts.cluster import DeviceProfile, Profile
from pac_core.emulated.clock import Clock
from pac_core.planning.cost import FORWARD


class Waits:
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
        self._entered: set[tuple[str, int]] = set()

    def backbone(self, stream: str, layer: int, lengths: Sequence[int], sources: Sequence[int]) -> None:
        """The forward pass of backbone layer ``layer`` (from 0).

        Args:
            lengths: tokens of each row.
            sources: tokens of each row of the stream that it attends to; empty without.
        """
        costs = self._profile.layers[stream][layer]
        work = sum(n * (costs.flops + n * costs.pair_flops) for n in lengths) + costs.cross_flops * sum(sources)
        self._entered.add((stream, layer))
        self._clock.spend(self._device.layer_s + work / self._device.flops)

    def side(self, stream: str, layer: int, lengths: Sequence[int]) -> None:
        """The forward pass of the side layer that reads backbone layer ``layer``. With the backbone's it is one pass,
        which takes `DeviceProfile.layer_s` once."""
        fixed = 0.0 if (stream, layer) in self._entered else self._device.layer_s
        self._entered.discard((stream, layer))
        self._clock.spend(fixed + FORWARD * self._side(stream, layer, lengths) / self._device.flops)

    def back(self, stream: str, layer: int, lengths: Sequence[int]) -> None:
        """The backward pass of that side layer."""
        rate = self._device.backward_flops or self._device.flops
        self._clock.spend(self._device.layer_s + (1 - FORWARD) * self._side(stream, layer, lengths) / rate)

    def _side(self, stream: str, layer: int, lengths: Sequence[int]) -> float:
        return self._profile.layers[stream][layer].side_flops * sum(lengths)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As of `Clock`."""
        return self
