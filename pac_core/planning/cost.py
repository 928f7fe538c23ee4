"""The one cost model of planners and simulator: seconds and bytes of any slice of a chain, on any device.

A pass over a layer takes `DeviceProfile.layer_s`, and its arithmetic at the device's rate. A message takes its link's
latency, and its bytes at the link's rate. Sums of gradients go around a ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, LayerProfile, Link, Profile
from pac_core.contracts.scheduler import StagePlan

FORWARD = 1 / 3
"""Part of `LayerProfile.side_flops` that is the forward pass: the backward pass multiplies twice as much."""


@dataclass(frozen=True)
class Seconds:
    """What one micro-batch takes in a stage.

    Attributes:
        forward, backward: seconds of the two passes.
    """

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Seconds of both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Crossing:
    """What goes through a cut of the chain, of one sample of mean length.

    Attributes:
        forward: bytes of hidden and side states that go on.
        backward: bytes of gradients that come back.
    """

    forward: float
    backward: float


@dataclass(frozen=True)
class Costs:
    """What slices of a chain cost. Entry i of each sum is that of the layers before place i, so a slice [first, last)
    is a difference; there is one entry more than layers.

    Attributes:
        forward_flops, backward_flops: of one sample of mean length, side network included.
        side_flops: of one sample in both passes, the side network alone: what cached epochs compute.
        held_bytes: of weights and all that training adds to them; embeddings lie with the first layer of their stream,
            the head with the last of the chain.
        side_bytes: of that, what training the side network takes.
        kept_bytes: of activations between the passes, of one sample of the longest length.
        gradient_bytes: that a device group sums.
        cached_bytes: of the cache's entries of one sample of mean length.
        crossings: for each place what goes through a cut there.
        cuts: places where a stage may begin, and the end of the chain.
    """

    forward_flops: tuple[float, ...]
    backward_flops: tuple[float, ...]
    side_flops: tuple[float, ...]
    held_bytes: tuple[float, ...]
    side_bytes: tuple[float, ...]
    kept_bytes: tuple[float, ...]
    gradient_bytes: tuple[float, ...]
    cached_bytes: tuple[float, ...]
    crossings: tuple[Crossing, ...]
    cuts: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Layers of the chain."""
        return len(self.forward_flops) - 1

    def seconds(self, device: DeviceProfile, first: int, last: int, rows: float) -> Seconds:
        """Seconds of a micro-batch's ``rows`` in the slice [first, last)."""
        passing = (last - first) * device.layer_s
        back = slice_of(self.backward_flops, first, last)
        return Seconds(
            passing + rows * slice_of(self.forward_flops, first, last) / device.flops,
            (passing + rows * back / (device.backward_flops or device.flops)) if back else 0.0,
        )

    def bytes(self, first: int, last: int, rows: float, in_flight: int) -> float:
        """Bytes on a device that runs the slice [first, last) with ``in_flight`` micro-batches of ``rows``."""
        held = slice_of(self.held_bytes, first, last)
        return held + rows * in_flight * slice_of(self.kept_bytes, first, last)

    def side_seconds(self, device: DeviceProfile, rows: float) -> Seconds:
        """Seconds of ``rows`` cached samples in the whole side network."""
        work, passing = rows * self.side_flops[-1], self.layers * device.layer_s
        return Seconds(
            passing + FORWARD * work / device.flops,
            passing + (1 - FORWARD) * work / (device.backward_flops or device.flops),
        )

    def cached_seconds(self, device: DeviceProfile, rows: float) -> float:
        """Seconds in which a device trains the whole side network on ``rows`` cached samples: it reads them, and
        computes forward and backward."""
        return disk_s(device, rows * self.cached_bytes[-1]) + self.side_seconds(device, rows).both


def costs(profile: Profile, job: Job) -> Costs:
    """The costs of a profile's chain for the samples of a job."""
    chain = profile.chain()
    held = [(stream, profile.layers[stream][i]) for stream, i in chain]
    sources = {stream: _source(profile, stream) for stream in profile.layers}
    final = len(chain) - 1
    embeddings = [profile.embedding_bytes.get(stream, 0) if i == 0 else 0 for stream, i in chain]
    heads = [profile.head_bytes if place == final else 0 for place in range(len(chain))]
    return Costs(
        forward_flops=_sums(_forward(layer, job, s, sources[s]) + FORWARD * _side(layer, job, s) for s, layer in held),
        backward_flops=_sums(
            layer.back_passes * _forward(layer, job, s, sources[s]) + (1 - FORWARD) * _side(layer, job, s)
            for s, layer in held
        ),
        side_flops=_sums(_side(layer, job, s) for s, layer in held),
        held_bytes=_sums(
            layer.weight_bytes + layer.side_bytes + more + head
            for (_, layer), more, head in zip(held, embeddings, heads)
        ),
        side_bytes=_sums(layer.side_bytes for _, layer in held),
        kept_bytes=_sums(kept_bytes(layer, job, s, sources[s]) for s, layer in held),
        gradient_bytes=_sums(layer.gradient_bytes for _, layer in held),
        cached_bytes=_sums(layer.tap_bytes * job.mean(s) for s, layer in held),
        crossings=tuple(_crossing(profile, job, chain, place) for place in range(len(chain) + 1)),
        cuts=(*(i for i, (_, n) in enumerate(chain) if n == 0 or n >= profile.first_cut), len(chain)),
    )


def slice_of(sums: Sequence[float], first: int, last: int) -> float:
    """What the layers [first, last) add to running sums."""
    return sums[last] - sums[first]


def kept_bytes(layer: LayerProfile, job: Job, stream: str, source: str | None) -> float:
    """Bytes that one sample of the longest length keeps in a layer for the backward pass."""
    attended = 0.0 if source is None else layer.cross_kept_bytes * job.longest(source)
    return layer.kept_bytes * job.longest(stream) + attended


def places(profile: Profile, stage: StagePlan) -> tuple[int, int]:
    """The slice [first, last) of the chain that a stage runs."""
    starts = dict(zip(profile.layers, accumulate((len(layers) for layers in profile.layers.values()), initial=0)))
    ranges = [(starts[stream] + first, starts[stream] + last) for stream, (first, last) in stage.layers.items()]
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def transfer_s(link: Link, size: float) -> float:
    """Seconds from sending a message of ``size`` bytes until all of it has arrived, on a link that is free."""
    return link.latency_s + 8 * size / link.bits_per_second


def disk_s(device: DeviceProfile, size: float) -> float:
    """Seconds in which a device reads or writes ``size`` bytes of cache entries."""
    return size / device.disk_bytes_per_s if device.disk_bytes_per_s else 0.0


def update_s(device: DeviceProfile, size: float) -> float:
    """Seconds in which a device changes trained weights of ``size`` bytes by their gradients."""
    return size / device.update_bytes_per_s if device.update_bytes_per_s else 0.0


def all_reduce_s(cluster: Cluster, devices: Sequence[str], size: float) -> float:
    """Seconds in which a device group sums ``size`` bytes around a ring: twice as many messages as there are other
    devices, each of one part, as slow as the slowest link of the ring. On a shared medium they take turns."""
    count = len(devices)
    if count == 1 or size == 0:
        return 0.0
    ring = [cluster.link(one, other) for one, other in zip(devices, [*devices[1:], devices[0]])]
    slowest = max(8 / link.bits_per_second for link in ring) * (count if cluster.shared else 1)
    return 2 * (count - 1) * (max(link.latency_s for link in ring) + slowest * size / count)


def _sums(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(accumulate(values, initial=0.0))


def _source(profile: Profile, stream: str) -> str | None:
    """The stream that this one attends to: the one before it."""
    names = list(profile.layers)
    number = names.index(stream)
    return names[number - 1] if number else None


def _forward(layer: LayerProfile, job: Job, stream: str, source: str | None) -> float:
    """Operations of the backbone's forward pass over one sample."""
    tokens = job.mean(stream)
    attended = 0.0 if source is None else layer.cross_flops * job.mean(source)
    return tokens * (layer.flops + layer.pair_flops * tokens) + attended


def _side(layer: LayerProfile, job: Job, stream: str) -> float:
    return layer.side_flops * job.mean(stream)


def _crossing(profile: Profile, job: Job, chain: Sequence[tuple[str, int]], place: int) -> Crossing:
    """States of the stream that is cut, and of those before it, which later layers attend to; none at the ends."""
    if not 0 < place < len(chain):
        return Crossing(0.0, 0.0)
    names = list(profile.layers)
    cut = names.index(chain[place - 1][0])
    lasts = [(name, profile.layers[name][-1]) for name in names[:cut]]
    lasts.append((names[cut], profile.layers[names[cut]][chain[place - 1][1]]))
    hidden = sum(layer.hidden_bytes * job.mean(name) for name, layer in lasts)
    state = sum(layer.state_bytes * job.mean(name) for name, layer in lasts)
    return Crossing(hidden + state, state)
