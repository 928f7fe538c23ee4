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

CHUNK_TOKENS = 2048
"""Tokens of a chunk; see `pac_core.runtime.spread`."""

STATE = 3
"""Numbers of each trained weight that are sent: itself and two moments."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Everything that travels.

    Attributes:
        messages: bytes from each device (row) to each other one (column).
        state: likewise, of the slices of the side network, which go first.
        turns: chunks of each owner.
    """

    messages: Matrix
    state: Matrix
    turns: int

    @property
    def sent(self) -> float:
        """Bytes in all."""
        return float(self.messages.sum() + self.state.sum())

    def arrivals(self, cluster: Cluster, names: Sequence[str]) -> Matrix:
        """Seconds after which each device (row) has each of its chunks (column), if nothing else is sent.

        A device sends one message at a time and receives one at a time, each at the rate of its link; on a shared
        medium there is one at a time in all. No port that has something to do stands still, as with TCP, where messages
        share it: so a chunk has arrived when the busiest of the ports that it needs has done what came before.
        """
        per_byte, latency = _links(cluster, names)
        before = _busy(self.state * per_byte, cluster.shared)
        each = _busy(self.messages * per_byte, cluster.shared) / self.turns
        turns = np.arange(1, self.turns + 1)
        late = np.where((self.messages > 0).any(0), latency, 0.0)
        found: Matrix = before[:, None] + each[:, None] * turns + late[:, None] * turns
        return found


def spread_of(
    plan: Plan,
    found: Costs,
    slices: Sequence[tuple[int, int]],
    samples: int,
    tokens: float,
    *,
    trained: bool,
    scaled: int = 0,
) -> Spread:
    """What is sent if all devices own equal shares of the samples.

    Args:
        found: costs with the bytes of entries as they travel.
        tokens: of a sample, in all streams.
        trained: whether the first epoch has trained the slices of the side network.
        scaled: samples that went through the stages once before that; then two devices of a group may have the same
            entry, and both send it.
    """
    size = plan.size
    stages = [plan.place(rank)[0] for rank in range(size)]
    each = np.array([slice_of(found.cached_bytes, *slices[stage]) for stage in stages])
    mixed, met = _mixed(plan), _met(plan)
    messages = each[:, None] * samples * (met if trained else mixed)
    if trained:  # but a device that owns a sample and has run all its layers lacks nothing
        twice = mixed * (1 - size * met) if len(plan.stages) > 1 else 0 * mixed
        messages = messages + each[:, None] * min(scaled, samples) * twice.clip(0)
    np.fill_diagonal(messages, 0.0)
    state = np.zeros((size, size))
    if trained:
        for number, (first, last) in enumerate(slices):
            weights = slice_of(found.gradient_bytes, first, last)
            state[plan.group(number)[0]] = [STATE * weights * (stage != number) for stage in stages]
    chunk = max(CHUNK_TOKENS // max(tokens, 1.0), 1.0)
    return Spread(messages, state, max(int(np.ceil(samples / size / chunk)), 1))


def _mixed(plan: Plan) -> Matrix:
    """(makers, owners) parts of all samples that a device runs and another one owns, where the two have nothing to do
    with each other: a prefill goes by length."""
    rows = np.array([own / plan.micro_batch_size for stage in plan.stages for own in stage.rows])
    return np.repeat(rows[:, None] / plan.size, plan.size, axis=1)


def _met(plan: Plan) -> Matrix:
    """The same where the stages run training's own batches, whose columns each device owns some of (see
    `pac_core.batches`): a row of a batch is on the same device of a stage, and has the same owner, in all of them."""
    batch, size = plan.micro_batches * plan.micro_batch_size, plan.size
    ends = np.round(np.arange(1, size + 1) / size * batch)
    owners = np.searchsorted(ends, np.arange(batch), side="right")
    found = np.zeros((size, size))
    for number, stage in enumerate(plan.stages):
        makers = np.repeat(plan.group(number), stage.rows)
        np.add.at(found, (np.tile(makers, plan.micro_batches), owners), 1 / batch)
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
