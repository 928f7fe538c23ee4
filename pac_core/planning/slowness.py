"""Devices that compute slower than their profiles say: all the time, or now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pac_core.contracts.cluster import Cluster, DeviceProfile
from pac_core.errors import BadInput

MOST = 1e6
"""Times that a device may be slower or quicker; beyond that numbers overflow."""


@dataclass(frozen=True)
class Slowness:
    """How devices compute, beside their profiles. Links and disks are as they are.

    Attributes:
        factors: by device, how many times as long it takes for everything that it computes.
        sigma: of the logarithm of a random factor, log-normal with median 1, that each action has of its own; 0 for
            none.
        seed: of the random factors: the same seed gives the same run.
    """

    factors: Mapping[str, float] = field(default_factory=dict)
    sigma: float = 0.0
    seed: int = 0

    @property
    def random(self) -> bool:
        """Whether equal actions take unequally long."""
        return self.sigma > 0

    def among(self, names: Sequence[str]) -> Slowness:
        """Of some devices alone."""
        return replace(self, factors={name: factor for name, factor in self.factors.items() if name in names})

    def slowed(self, cluster: Cluster) -> Cluster:
        """The cluster with the rates that its devices have all the time.

        Raises:
            BadInput: a factor is for a device that is not there, or beyond `MOST`.
        """
        names = {device.name for device in cluster.devices}
        for name, factor in self.factors.items():
            if name not in names:
                raise BadInput(f"'{name}' is to be slow and is not in the cluster: {', '.join(sorted(names))}")
            if not 1 / MOST <= factor <= MOST:
                raise BadInput(
                    f"'{name}' is to be slower by the factor {factor:g}; give a number from {1 / MOST:g} to {MOST:g}, "
                    "such as 2"
                )
        if not self.factors:
            return cluster
        return replace(cluster, devices=tuple(_slowed(d, self.factors.get(d.name, 1.0)) for d in cluster.devices))

    def draws(self, number: int, counts: Sequence[int]) -> list[list[float]]:
        """Factors of every action of a mini-batch: one list a device, as long as ``counts`` says; none where nothing is
        random.

        Args:
            number: of the mini-batch.
        """
        if not self.random:
            return []
        generator = np.random.default_rng((self.seed, number))
        return [generator.lognormal(0.0, self.sigma, count).tolist() for count in counts]


def _slowed(device: DeviceProfile, factor: float) -> DeviceProfile:
    return replace(
        device,
        flops=device.flops / factor,
        backward_flops=device.backward_flops and device.backward_flops / factor,
        layer_s=device.layer_s * factor,
        update_bytes_per_s=device.update_bytes_per_s and device.update_bytes_per_s / factor,
        write_bytes_per_s=device.write_bytes_per_s and device.write_bytes_per_s / factor,
        step_s=device.step_s * factor,
        paces=device.paces and device.paces.slowed(factor),
    )


def factors_of(given: Sequence[str]) -> dict[str, float]:
    """Factors by device, as the command line gives them.

    Raises:
        BadInput: a text is not DEVICE=FACTOR, or a device comes twice.

    >>> factors_of(["kitchen=2.5"])
    {'kitchen': 2.5}
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, factor = text.rpartition("=")
        if name in found:
            raise BadInput(f"--slow {text}: '{name}' has a factor already; give one")
        try:
            found[name] = float(factor)
        except ValueError:
            name = ""
        if not name:
            raise BadInput(f"--slow {text}: write it as DEVICE=FACTOR, such as home/1=2")
    return found
