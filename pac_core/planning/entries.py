"""How entries travel to their owners after the first epoch: bytes and seconds of each device's ports.

As `pac_core.runtime.spread` does it: every device sends what it has made of a chunk of samples to the device that owns
them, a chunk for every owner at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pac_core.contracts.cluster import Cluster
from pac_core.contracts.scheduler import Plan
from pac_core.planning.cost import Costs, slice_of
from pac_core.shares import columns_each, evened, parts_of

CHUNK_TOKENS = 2048
"""Tokens of a chunk; see `pac_core.runtime.spread`."""

STATE = 3
"""Numbers of each trained weight that are sent: itself and two moments."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Owned:
    """Whose samples are whose once the first pass is over. Devices are numbered as the plan lists them.

    Attributes:
        parts: (devices,) of all samples, on average.
        rows: (batch,) int64 owner of each row of a mini-batch in the stages.
    """

    parts: Matrix
    rows: NDArray[np.int64]


def owned_by(plan: Plan, cluster: Cluster, batch_size: int) -> Owned:
    """What the plan's devices own in a run, where they are ranked as in ``cluster`` and share out by their speeds.

    Args:
        batch_size: samples of a mini-batch from the cache.
    """
    place = {name: i for i, name in enumerate(name for stage in plan.stages for name in stage.devices)}
    used = [device for device in cluster.devices if device.name in place]
    order, shares = np.array([place[device.name] for device in used]), evened([device.flops for device in used])
    parts = np.empty(len(used))
    parts[order] = parts_of(shares, batch_size)
    return Owned(parts, np.repeat(order, columns_each(shares, plan.micro_batches * plan.micro_batch_size)))


@dataclass(frozen=True)
class Spread:
    """Everything that travels.

    Attributes:
        messages: bytes from each device (row) to each other one (column).
        state: likewise, of the slices of the side network, which go first.
        chunks: of each owner, in which its entries travel; at least 1.
    """

    messages: Matrix
    state: Matrix
    chunks: Sequence[int]

    @property
    def sent(self) -> float:
        """Bytes in all."""
        return float(self.messages.sum() + self.state.sum())

    def arrivals(self, cluster: Cluster, names: Sequence[str]) -> Matrix:
        """Seconds after which each device (row) has its part of its entries (column), if nothing else is sent: all have
        as many parts as the one with most chunks has of those.

        A device sends one message at a time and receives one at a time, each at the rate of its link; on a shared
        medium there is one at a time in all. No port that has something to do stands still, as with TCP, where messages
        share it: so a chunk has arrived when the busiest of the ports that it needs has done what came before.
        """
        per_byte, latency = _links(cluster, names)
        before = _busy(self.state * per_byte, cluster.shared)
        late = np.where((self.messages > 0).any(0), latency, 0.0)
        chunks = np.array(self.chunks)
        ends = np.unique(chunks)  # after so many turns some owners have all of theirs
        busy = [_busy(self.messages * per_byte * np.minimum(end / chunks, 1.0), cluster.shared) for end in ends]
        turns = np.arange(1, ends[-1] + 1) * (chunks / ends[-1])[:, None]
        each = [np.interp(own, [0, *ends], [0.0, *done]) for own, done in zip(turns, np.transpose(busy))]
        found: Matrix = before[:, None] + np.array(each) + late[:, None] * turns
        return found


def spread_of(
    plan: Plan,
    found: Costs,
    slices: Sequence[tuple[int, int]],
    samples: int,
    tokens: float,
    owned: Owned,
    *,
    trained: bool,
    scaled: int = 0,
) -> Spread:
    """What is sent.

    Args:
        found: costs with the bytes of entries as they travel.
        tokens: of a sample, in all streams.
        owned: which samples each device is to have.
        trained: whether the first epoch has trained the slices of the side network.
        scaled: samples that went through the stages once before that; then two devices of a group may have the same
            entry, and both send it.
    """
    size = plan.size
    stages = [plan.place(rank)[0] for rank in range(size)]
    each = np.array([slice_of(found.cached_bytes, *slices[stage]) for stage in stages])
    mixed, met = _mixed(plan, owned), _met(plan, owned)
    messages = each[:, None] * samples * (met if trained else mixed)
    if trained:  # but a device that owns a sample and has run all its layers lacks nothing
        others = 1 - np.divide(met, owned.parts, out=np.zeros_like(met), where=owned.parts > 0)
        twice = mixed * others if len(plan.stages) > 1 else 0 * mixed
        messages = messages + each[:, None] * min(scaled, samples) * twice.clip(0)
    np.fill_diagonal(messages, 0.0)
    state = np.zeros((size, size))
    if trained:
        for number, (first, last) in enumerate(slices):
            weights = slice_of(found.gradient_bytes, first, last)
            state[plan.group(number)[0]] = [STATE * weights * (stage != number) for stage in stages]
    chunk = max(CHUNK_TOKENS // max(tokens, 1.0), 1.0)
    chunks = np.ceil(samples * owned.parts / chunk).clip(1)
    return Spread(messages, state, tuple(map(int, chunks)))


def _mixed(plan: Plan, owned: Owned) -> Matrix:
    """(makers, owners) parts of all samples that a device runs and another one owns, where the two have nothing to do
    with each other: a prefill goes by length."""
    rows = np.array([own / plan.micro_batch_size for stage in plan.stages for own in stage.rows])
    found: Matrix = rows[:, None] * owned.parts
    return found


def _met(plan: Plan, owned: Owned) -> Matrix:
    """The same where the stages run training's own batches, whose columns each device owns some of (see
    `pac_core.batches`): a row of a batch is on the same device of a stage, and has the same owner, in all of them."""
    found = np.zeros((plan.size, plan.size))
    for number, stage in enumerate(plan.stages):
        makers = np.repeat(plan.group(number), stage.rows)
        np.add.at(found, (np.tile(makers, plan.micro_batches), owned.rows), 1 / len(owned.rows))
    return found


def _links(cluster: Cluster, names: Sequence[str]) -> tuple[Matrix, float]:
    """Seconds of a byte between each two devices, and the longest latency."""
    found = [[cluster.link(one, other) for other in names] for one in names]
    latency = max((link.latency_s for i, row in enumerate(found) for j, link in enumerate(row) if i != j), default=0.0)
    return np.array([[8 / link.bits_per_second for link in row] for row in found]), latency


def _busy(seconds: Matrix, shared: bool) -> Matrix:
    """(devices,) seconds until each has received its messages, given those of each pair."""
    if shared:
        return np.full(len(seconds), seconds.sum())
    sending = seconds.sum(1)
    senders = np.where(seconds > 0, sending[:, None], 0.0).max(0)
    found: Matrix = np.maximum(seconds.sum(0), senders)
    return found
