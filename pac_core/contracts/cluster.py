"""What a scheduler plans for: devices and links, the costs of a model's layers, and the work. Data, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field

from pac_core.contracts.formats import WeightFormat

AS_WRITTEN = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""How these are read from files: nothing unknown, nothing converted."""

Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Pace:
    """What a pass through a layer takes: ``layer_s`` seconds however few rows there are, and its operations at
    ``flops`` a second."""

    __pydantic_config__ = AS_WRITTEN

    flops: Rate
    layer_s: Amount = 0.0

    def seconds(self, operations: float) -> float:
        """Seconds of a pass with so many operations."""
        return self.layer_s + operations / self.flops

    def slowed(self, factor: float) -> Pace:
        """The same of a device that takes ``factor`` times as long."""
        return Pace(self.flops / factor, self.layer_s * factor)


@dataclass(frozen=True)
class StreamPaces:
    """How a device runs the layers of one stream.

    Attributes:
        stream: its name.
        backbone: a layer of the frozen backbone, forward.
        side_forward, side_backward: the side layer beside it, in a stage.
        cached: the same in both passes, where all taps come from the cache.
    """

    __pydantic_config__ = AS_WRITTEN

    stream: str
    backbone: Pace
    side_forward: Pace
    side_backward: Pace
    cached: Pace


@dataclass(frozen=True)
class Paces:
    """How a device runs one model, as measured.

    Attributes:
        streams: each stream's layers.
        head_forward, head_backward: what comes behind the last layer: exit from the side network, head and loss.
    """

    __pydantic_config__ = AS_WRITTEN

    streams: tuple[StreamPaces, ...]
    head_forward: Pace
    head_backward: Pace

    def slowed(self, factor: float) -> Paces:
        """The same of a device that takes ``factor`` times as long."""
        streams = tuple(
            StreamPaces(
                each.stream,
                each.backbone.slowed(factor),
                each.side_forward.slowed(factor),
                each.side_backward.slowed(factor),
                each.cached.slowed(factor),
            )
            for each in self.streams
        )
        return Paces(streams, self.head_forward.slowed(factor), self.head_backward.slowed(factor))

    def of(self, stream: str) -> StreamPaces:
        """Those of a stream; KeyError if it was not measured."""
        for paces in self.streams:
            if paces.stream == stream:
                return paces
        raise KeyError(stream)


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
        update_bytes_per_s: of trained weights, at which an optimiser step changes them; None if that takes no time.
        write_bytes_per_s: of cache entries, at which the thread that computes hands them to the store in the forward
            pass of a stage; None if that takes no time.
        step_s: seconds of an optimiser step however few the weights are.
        paces: what was measured with a model; then `flops`, `backward_flops` and `layer_s` stand for it only where one
            number must do.
    """

    __pydantic_config__ = AS_WRITTEN

    name: str
    flops: Rate
    memory_bytes: Bytes
    backward_flops: Rate | None = None
    layer_s: Amount = 0.0
    disk_bytes_per_s: Rate | None = None
    update_bytes_per_s: Rate | None = None
    write_bytes_per_s: Rate | None = None
    step_s: Amount = 0.0
    paces: Paces | None = None


@dataclass(frozen=True)
class Link:
    """The way from one device to another, in both directions: bits a second, and seconds until the first arrives."""

    __pydantic_config__ = AS_WRITTEN

    bits_per_second: Rate
    latency_s: Amount


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
        cross_side_flops: as `side_flops`, but a token of the stream that this one attends to.
        int8_bytes: of the backbone's weights held as int8; 0 where they cannot be, or are already.
    """

    __pydantic_config__ = AS_WRITTEN

    flops: Amount
    pair_flops: Amount
    side_flops: Amount
    weight_bytes: Bytes
    side_bytes: Bytes
    hidden_bytes: Bytes
    state_bytes: Bytes
    tap_bytes: Bytes
    kept_bytes: Bytes
    back_passes: Amount = 0.0
    cross_flops: Amount = 0.0
    cross_kept_bytes: Bytes = 0
    gradient_bytes: Bytes = 0
    cross_side_flops: Amount = 0.0
    int8_bytes: Bytes = 0


@dataclass(frozen=True)
class Profile:
    """A model's costs.

    Attributes:
        layers: per stream, in the order of the chain, its layers.
        embedding_bytes: per stream what is held with its first layer.
        head_bytes: what is held with the last layer of the chain.
        first_cut: smallest layer of a stream, beside 0, that a stage may begin with; later ones all may.
        head_flops: of the head, a token of the last stream, in each pass.
        weights: how the layers' matrices are held, which `LayerProfile.weight_bytes` are for.
    """

    __pydantic_config__ = AS_WRITTEN

    layers: Mapping[str, tuple[LayerProfile, ...]]
    embedding_bytes: Mapping[str, Bytes]
    head_bytes: Bytes = 0
    first_cut: Annotated[int, Field(ge=1)] = 1
    head_flops: Amount = 0.0
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

    __pydantic_config__ = AS_WRITTEN

    batch_size: Annotated[int, Field(ge=1)]
    micro_batch_size: Annotated[int, Field(ge=1)] | None
    mean_length: Rate
    max_length: Annotated[int, Field(ge=1)]
    dtype: str = "float32"
    lengths: Mapping[str, Rate] = field(default_factory=dict)

    def mean(self, stream: str) -> float:
        """Tokens of a sample in a stream."""
        return self.lengths.get(stream, self.mean_length)

    def longest(self, stream: str) -> float:
        """Tokens of the longest sample in a stream."""
        return self.lengths.get(stream, self.max_length)
