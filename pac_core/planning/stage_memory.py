"""Main memory that a device of a plan takes in epoch 1, worked out from shapes: no tensors, no measurements."""

from __future__ import annotations

from dataclasses import dataclass

from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneInfo, Stream, tap_indices
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.hardware import SHORT
from pac_core.int8 import PIECE, int8_size

SINGLE = 4
"""Bytes of a float32 number, in which side network, gradients and taps in use are."""

TRAINED = 4
"""Numbers held for each trained one: itself, its gradient, and AdamW's two moments."""

STATES = 16
"""Tensors of side width that autograd keeps of a side layer with attention: inputs of its three norms and four
projections, query, key, value, branches, and what `parallel` hands on, twice as wide."""

TOKEN_WISE = 6
"""The same of a side layer without attention."""

HEADS = 4
"""Attention heads of a side network, unless its configuration says otherwise."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one device holds at its peak, above what the program takes by itself.

    Attributes:
        weights: of the backbone's slice, with embeddings and language-model head where the stage has them.
        side: weights, gradients and optimiser state of the slice of the side network.
        in_flight: activations kept between forward and backward, of all micro-batches in flight.
        working: what one forward pass needs while it runs.
        messages: hidden and side states that have arrived ahead, are being worked on, or wait to be sent.
    """

    weights: int
    side: int
    in_flight: int
    working: int
    messages: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.side + self.in_flight + self.working + self.messages


def replica_bytes(info: BackboneInfo, adapter: AdapterConfig, plan: Plan) -> int:
    """Bytes of the whole side network, which each device of a run holds beside its slice for the epochs to come. They
    are weights alone: gradients and moments come when the stage has gone."""
    chain = [stream for stream in info.streams if any(stream.name in stage.layers for stage in plan.stages)]
    taps = sum(_taps(adapter, stream, 0, stream.layers) for stream in chain)
    return taps * side_numbers(info, adapter, chain[-1]) * SINGLE


def stage_memory(
    info: BackboneInfo, adapter: AdapterConfig, plan: Plan, rank: int, tokens: int, *, head: bool = False
) -> StageMemory:
    """What the device ``rank`` of a plan holds.

    Key and value heads count as many as query heads, so models that share them take somewhat less. Texts of pairs that
    are read apart are rows of their own.

    Args:
        tokens: of the longest row in each stream.
        head: whether the task uses the language-model head.
    """
    number, place = plan.place(rank)
    stage = plan.stages[number]
    rows = stage.rows[place]
    chain = [stream for stream in info.streams if any(stream.name in each.layers for each in plan.stages)]
    held = [(stream, *stage.layers[stream.name]) for stream in chain if stream.name in stage.layers]
    ends = held[-1][0] is chain[-1] and held[-1][2] == chain[-1].layers
    table = info.vocab_size * info.hidden_size
    in_layers = sum((last - first) * layer_numbers(info, stream, info.hidden_size) for stream, first, last in held)
    positions = (info.max_tokens or 0) if info.norm == "layer" else 0  # with RMS norms they are rotary, or biases
    beside = sum(first == 0 for _, first, _ in held) * (table + positions * info.hidden_size)
    beside += (ends and head) * table
    taps = sum(_taps(adapter, stream, first, last) for stream, first, last in held)
    kept = sum(_kept(info, adapter, stream, first, last, tokens) for stream, first, last in held)
    logits = tokens * rows * info.vocab_size * SINGLE if ends and head else 0
    size = info.dtype.itemsize
    quantised = plan.weights == "int8"
    turned_back = min(PIECE, info.hidden_size * info.intermediate_size) * size if quantised else 0
    width = 2 * info.hidden_size // adapter.reduction
    crossing = rows * tokens * (info.hidden_size * size + width * SINGLE) * _streams_on(chain, stage)
    return StageMemory(
        weights=beside * size + (int8_size(in_layers) if quantised else in_layers * size),
        side=taps * side_numbers(info, adapter, chain[-1]) * SINGLE * TRAINED,
        in_flight=plan.most_in_flight(number) * rows * tokens * kept + logits,
        working=rows * tokens * (2 * info.intermediate_size + 3 * info.hidden_size) * size + 2 * logits + turned_back,
        messages=crossing * ((number > 0) * 2 + (not ends)),
    )


def _streams_on(chain: list[Stream], stage: StagePlan) -> int:
    """Streams whose states pass through a stage."""
    return len(chain) if chain[-1].name in stage.layers else 1


def _taps(adapter: AdapterConfig, stream: Stream, first: int, last: int) -> int:
    return sum(first < tap <= last or tap == first == 0 for tap in tap_indices(stream.layers, adapter.tap_every))


def layer_numbers(info: BackboneInfo, stream: Stream, width: int) -> int:
    """Weights in the matrices of a layer at ``width``, the MLP in proportion."""
    inner = info.intermediate_size * width // info.hidden_size
    return (8 if stream.cross else 4) * width * width + (3 if info.gated_mlp else 2) * width * inner


def side_numbers(info: BackboneInfo, adapter: AdapterConfig, stream: Stream) -> int:
    """Weights of a side layer: its down-projection, and a layer at side width."""
    width = info.hidden_size // adapter.reduction
    attends = adapter.name != "bottleneck"
    return info.hidden_size * width + (layer_numbers(info, stream, width) if attends else width * width)


def _kept(info: BackboneInfo, adapter: AdapterConfig, stream: Stream, first: int, last: int, tokens: int) -> int:
    """Bytes that are kept for a token's backward pass through a slice."""
    width = info.hidden_size // adapter.reduction
    taps = _taps(adapter, stream, first, last)
    layers = taps - (first == 0 and taps > 0)
    if adapter.name == "bottleneck":
        return SINGLE * (taps * info.hidden_size + layers * kept_numbers(info, adapter, stream))
    scores = (adapter.heads or HEADS) * tokens if tokens <= SHORT else 0
    return SINGLE * (taps * info.hidden_size + layers * (kept_numbers(info, adapter, stream) + scores) + 4 * width)


def kept_numbers(info: BackboneInfo, adapter: AdapterConfig, stream: Stream) -> int:
    """Numbers that are kept of a side layer for a token's backward pass, beside the tap and attention's scores."""
    width = info.hidden_size // adapter.reduction
    if adapter.name == "bottleneck":
        return TOKEN_WISE * width
    inner = (4 if info.gated_mlp else 2) * info.intermediate_size // adapter.reduction
    return STATES * (2 if stream.cross else 1) * width + inner
