"""Device cards: what makers publish of devices, for planning with devices that are not there to be measured."""

from __future__ import annotations

from dataclasses import dataclass

from pac_core.contracts.cluster import DeviceProfile
from pac_core.errors import BadInput

ASSUMED = 0.5
"""Part of the peak rate that float32 training is taken to reach where nobody has measured it."""

FREE = 0.75
"""Part of the memory that a run may take, where the system and the program itself need the rest: assumed."""


@dataclass(frozen=True)
class DeviceCard:
    """A kind of device.

    Attributes:
        name: as the command line spells it.
        title: what it is.
        peak_flops: float32 operations a second: published, or cores x operations a cycle x clock where so named.
        memory_bytes: of the memory that tensors live in.
        source: where these are published.
        efficiency: part of the peak that training reaches in its forward pass.
        backward_efficiency: the same in its backward pass.
        basis: ``"assumed"``, or what the efficiency was calibrated with.
        usable_bytes: what a run may take of the memory.
    """

    name: str
    title: str
    peak_flops: float
    memory_bytes: int
    source: str
    efficiency: float = ASSUMED
    backward_efficiency: float = ASSUMED
    basis: str = "assumed"
    usable_bytes: int | None = None

    def device(self, name: str) -> DeviceProfile:
        """A device of this kind for a cluster."""
        usable = self.usable_bytes or round(FREE * self.memory_bytes)
        return DeviceProfile(
            name, self.efficiency * self.peak_flops, usable, self.backward_efficiency * self.peak_flops
        )


CARDS = {
    card.name: card
    for card in (
        DeviceCard(
            "jetson-nano",
            "NVIDIA Jetson Nano, 4 GB",
            2.36e11,
            4 << 30,
            "NVIDIA, Jetson Nano module data sheet: 128 Maxwell cores, 472 GFLOPS in float16, half of it in float32",
            0.43,
            0.88,
            "four cells of the paper's table 2 (pac simulate --paper icpp24)",
            1_360_000_000,
        ),
        DeviceCard(
            "jetson-tx2",
            "NVIDIA Jetson TX2, 8 GB",
            6.65e11,
            8 << 30,
            "NVIDIA, Jetson TX2 module: 256 Pascal cores, 1.33 TFLOPS in float16, half of it in float32",
        ),
        DeviceCard(
            "xavier-nx",
            "NVIDIA Jetson Xavier NX, 8 GB",
            8.45e11,
            8 << 30,
            "NVIDIA, Jetson Xavier NX data sheet: 384 Volta cores at 1.1 GHz, 2 operations a cycle each",
        ),
        DeviceCard(
            "orin-nano",
            "NVIDIA Jetson Orin Nano Super, 8 GB",
            2.09e12,
            8 << 30,
            "NVIDIA, Jetson Orin Nano Super developer kit: 1024 Ampere cores at 1.02 GHz, 2 operations a cycle each",
        ),
        DeviceCard(
            "raspberry-pi-5",
            "Raspberry Pi 5, 8 GB",
            1.536e11,
            8 << 30,
            "Raspberry Pi 5 product brief: 4 Cortex-A76 at 2.4 GHz; Arm: two 128-bit units, 16 operations a cycle",
        ),
        DeviceCard(
            "laptop",
            "Laptop with AMD Ryzen 7 7840U, 16 GB",
            8.45e11,
            16 << 30,
            "AMD, Ryzen 7 7840U: 8 Zen 4 cores at 3.3 GHz, 32 float32 operations a cycle",
        ),
        DeviceCard(
            "mac-m2",
            "Apple M2 with 10 GPU cores, 16 GB",
            3.6e12,
            16 << 30,
            "Apple, M2 announcement (June 2022): 3.6 TFLOPS",
        ),
        DeviceCard(
            "rtx-4070",
            "NVIDIA GeForce RTX 4070, 12 GB",
            2.915e13,
            12 << 30,
            "NVIDIA, Ada architecture: 5888 cores at 2.475 GHz boost, 2 operations a cycle each",
        ),
        DeviceCard(
            "h200",
            "NVIDIA H200 SXM, 141 GB",
            6.7e13,
            141 * 10**9,
            "NVIDIA, H200 data sheet: 67 TFLOPS in float32 without tensor cores",
        ),
    )
}
"""By name."""


def card(name: str) -> DeviceCard:
    """The card of this name.

    Raises:
        BadInput: there is none.
    """
    if name not in CARDS:
        raise BadInput(f"device card '{name}' is not known; known: {', '.join(CARDS)}")
    return CARDS[name]
