"""What a scheduler plans for: devices and links, the costs of a model's layers, and the work. Data, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pac_core.contracts.formats import WeightFormat


@dataclass(frozen=True)
class DeviceProfile:
    """One device.

    Attributes:
        name: unique in the cluster.
        flops: floating point operations that it does in a second, on matrices such as a layer's.
        memory_bytes: what a run may take of its memory.
        backward_flops: the same in backward passes, where they are faster or slower; None if they are not.
        layer_s: seconds that a layer takes in each pass beside its arithmetic, however few the rows are.
        disk_bytes_per_s: at which cache entries are read and written; None if that takes no time.
    """

    name: str
    flops: float
    memory_bytes: int
    backward_flops: float | None = None
    layer_s: float = 0.0
    disk_bytes_per_s: float | None = None


@dataclass(frozen=True)
class Link:
    """The way from one device to another, in both directions: bits a second, and seconds until the first arrives."""

    bits_per_second: float
    latency_s: float


@dataclass(frozen=True)
class Cluster:
    """The devices of a run, the leader first.

    Attributes:
        devices: by rank.
        links: between pairs of names, in either order, where they are known.
        default: of all other pairs.
        shared: whether all messages share one medium, as over Wi-Fi; else only those that leave one device, and those
            that come to one, as at a switch.
    """

    devices: tuple[DeviceProfile, ...]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    default: Link = Link(128e6, 1e-3)
    shared: bool = False

    def link(self, one: str, other: str) -> Link:
        """The link between two devices."""
        return self.links.get((one, other)) or self.links.get((other, one)) or self.default


@dataclass(frozen=True)
class LayerProfile:
    """One backbone layer with the side layers that read it.

    Attributes:
        flops: of the backbone's forward pass, a token, without the products of tokens with each other.
        pair_flops: of those products, a token and a token that it sees.
        side_flops: of the side layer's forward and backward pass, a token.
        weight_bytes: of the backbone's weights.
        side_bytes: of the side layer's weights, gradients and AdamW moments.
        hidden_bytes: b, what goes on to the next layer, a token.
        state_bytes: a, the side state that goes on with it and whose gradient comes back, a token.
        tap_bytes: what the cache keeps of the layer, a token; 0 where it is not tapped.
        kept_bytes: activations that are kept for the backward pass, a token.
        back_passes: work of the backward pass through the backbone, in forward passes: 0 as long as nothing in it is
            trained, 1 where gradients only pass through it, 2 where all of it is trained.
        cross_flops: as `flops`, but a token of the stream that this one attends to, whose keys and values these are.
        cross_kept_bytes: as `kept_bytes`, likewise.
        gradient_bytes: of the gradients that a device group sums.
        int8_bytes: of the backbone's weights held as int8; 0 where they cannot be, or are already.
    """

    flops: float
    pair_flops: float
    side_flops: float
    weight_bytes: int
    side_bytes: int
    hidden_bytes: int
    state_bytes: int
    tap_bytes: int
    kept_bytes: int
    back_passes: float = 0.0
    cross_flops: float = 0.0
    cross_kept_bytes: int = 0
    gradient_bytes: int = 0
    int8_bytes: int = 0


@dataclass(frozen=True)
class Profile:
    """A model's costs.

    Attributes:
        layers: per stream, in the order of the chain, its layers.
        embedding_bytes: per stream what is held with its first layer.
        head_bytes: what is held with the last layer of the chain.
        first_cut: smallest layer of a stream, beside 0, that a stage may begin with; later ones all may.
        weights: how the layers' matrices are held, which `LayerProfile.weight_bytes` are for.
    """

    layers: Mapping[str, tuple[LayerProfile, ...]]
    embedding_bytes: Mapping[str, int]
    head_bytes: int = 0
    first_cut: int = 1
    weights: WeightFormat = "native"

    def chain(self) -> list[tuple[str, int]]:
        """Stream and number of each layer, in order."""
        return [(stream, layer) for stream, layers in self.layers.items() for layer in range(len(layers))]


@dataclass(frozen=True)
class Job:
    """The work of an optimiser step.

    Attributes:
        batch_size: samples of a step.
        micro_batch_size: samples of a micro-batch; None leaves it to the scheduler.
        mean_length, max_length: tokens of a sample.
        dtype: name of the backbone's number format.
        lengths: tokens of every sample in streams for which those two do not hold, such as the decoder's of a class.
    """

    batch_size: int
    micro_batch_size: int | None
    mean_length: float
    max_length: int
    dtype: str = "float32"
    lengths: Mapping[str, float] = field(default_factory=dict)

    def mean(self, stream: str) -> float:
        """Tokens of a sample in a stream."""
        return self.lengths.get(stream, self.mean_length)

    def longest(self, stream: str) -> float:
        """Tokens of the longest sample in a stream."""
        return self.lengths.get(stream, self.max_length)
