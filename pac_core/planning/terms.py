"""What the passes of a stage consist of on one device: terms that grow with layers and rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from pac_core.contracts.cluster import DeviceProfile, Pace, Paces

Matrix = NDArray[np.float64]

TINY = 1.0
"""Operations that differences of sums leave where there are none."""


@dataclass(frozen=True)
class Term:
    """What layers add to a pass on one device: so many passes of an operation, and its operations for a sample, as sums
    like those of `Costs`."""

    pace: Pace
    passes: tuple[float, ...]
    operations: tuple[float, ...]

    def seconds(self, first: int, last: int, rows: float) -> float:
        """Seconds of ``rows`` in the slice [first, last)."""
        fixed = (self.passes[last] - self.passes[first]) * self.pace.layer_s
        return fixed + rows * (self.operations[last] - self.operations[first]) / self.pace.flops

    def of_slices(self, rows: float) -> Matrix:
        """`seconds` of all slices: a matrix over first and last."""
        fixed = between(np.array(self.passes)) * self.pace.layer_s
        return fixed + between(rows * np.array(self.operations)) / self.pace.flops


@dataclass(frozen=True)
class Passes:
    """What the two passes consist of on one device."""

    forward: tuple[Term, ...]
    backward: tuple[Term, ...]


@dataclass(frozen=True)
class LayerWork:
    """Operations of each layer for a sample.

    Attributes:
        streams: of the layers.
        backbone, backbone_back: of the backbone's own passes.
        side_forward, side_backward: of the side layers.
    """

    streams: Sequence[str]
    backbone: NDArray[np.float64]
    backbone_back: NDArray[np.float64]
    side_forward: NDArray[np.float64]
    side_backward: NDArray[np.float64]


def rated(
    device: DeviceProfile, forward: Sequence[float], backward: Sequence[float], head: float, written: Sequence[float]
) -> Passes:
    """The passes by a device's rates for all models.

    Args:
        forward, backward: sums over layers of their operations.
        head: operations of the head in each pass.
        written: sums over layers of the bytes of cache entries.
    """
    ahead = Pace(device.flops, device.layer_s)
    back = Pace(device.backward_flops or device.flops, device.layer_s)
    layers = len(forward) - 1
    own = Term(ahead, tuple(range(layers + 1)), tuple(forward))
    return Passes(
        (own, *_head(Pace(ahead.flops), head, layers), *_written(device, written)),
        (Term(back, _counts(backward), tuple(backward)), *_head(Pace(back.flops), head, layers)),
    )


def paced(device: DeviceProfile, paces: Paces, work: LayerWork, head: float, written: Sequence[float]) -> Passes:
    """The passes as a device was measured with this model; arguments as in `rated`."""
    layers, streams = len(work.streams), np.array(work.streams)
    forward, backward = list(_head(paces.head_forward, head, layers)), list(_head(paces.head_backward, head, layers))
    for stream in dict.fromkeys(work.streams):
        own, here = paces.of(stream), streams == stream
        forward += [_term(own.backbone, work.backbone, here), _term(own.side_forward, work.side_forward, here)]
        backward += [_term(own.backbone, work.backbone_back, here), _term(own.side_backward, work.side_backward, here)]
    return Passes((*forward, *_written(device, written)), tuple(backward))


def between(sums: NDArray[np.float64] | NDArray[np.intp]) -> Matrix:
    """What all slices add to running sums: a matrix over first and last."""
    return np.asarray(sums[None, :] - sums[:, None], dtype=np.float64)


def sums_of(values: Iterable[float]) -> tuple[float, ...]:
    """Running sums, 0 first."""
    return tuple(accumulate(values, initial=0.0))


def _head(pace: Pace, operations: float, layers: int) -> tuple[Term, ...]:
    """A pass through the head, behind the last layer; none where there is no work for it."""
    if not operations:
        return ()
    before = (0.0,) * layers
    return (Term(pace, (*before, 1.0), (*before, operations)),)


def _written(device: DeviceProfile, sizes: Sequence[float]) -> tuple[Term, ...]:
    """Cache entries that a stage's forward pass hands to the store."""
    if device.write_bytes_per_s is None:
        return ()
    return (Term(Pace(device.write_bytes_per_s), (0.0,) * len(sizes), tuple(sizes)),)


def _term(pace: Pace, operations: NDArray[np.float64], here: NDArray[np.bool_]) -> Term:
    """Of the layers that are ``here`` and have operations."""
    sums = sums_of(np.where(here & (operations > TINY), operations, 0.0).tolist())
    return Term(pace, _counts(sums), sums)


def _counts(sums: Sequence[float]) -> tuple[float, ...]:
    """How many of the layers have operations."""
    return sums_of(float(after > before) for before, after in pairwise(sums))
