"""The paper's models with what it compares, as profiles: from shapes alone.

Facts are those of its tables: layers, widths, heads, sequences of 128 tokens in float32. What is assumed is listed in
docs/reproduction.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.cluster import Job, LayerProfile, Profile

Technique = Literal["full", "adapters", "lora", "pac"]

TOKENS = 128
ANSWER = 1
"""Tokens of the decoder: the forward operations of figure 3 are those of a single one, to three digits."""

SINGLE = 4
REDUCTION = 8

BOTTLENECK = 64
"""Width of adapters; with two in each layer, T5-Large has the 50 MB of them that table 1 shows."""

RANK = 32
"""Of LoRA at queries and values; T5-Large then has the 40 MB of gradients that table 1 shows."""

KEPT_WIDTHS = {"full": 19.5, "adapters": 13.0, "lora": 14.0, "pac": 17.5}
"""Numbers as wide as the layer that autograd keeps for a token of an encoder layer, by technique. Full: inputs of both
norms and what they give, queries, keys, values, attended values, inner states before and after dropout, masks. Adapters
and LoRA need no inputs of frozen matrices, but their own. Parallel adapters: as full, at the side network's width."""

KEPT_SCORES = 2.25
"""Of attention's scores: probabilities, the same after dropout, and the mask of a byte."""


@dataclass(frozen=True)
class Shape:
    """An encoder-decoder model.

    Attributes:
        layers: of the encoder, and as many of the decoder.
        width: hidden size; inner states are four times as wide.
        heads: of attention; the side network has as many.
        vocabulary: rows of the one embedding table, which is held with the encoder.
        positions: rows of tables of positions.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int = 0


SHAPES = {
    "t5-base": Shape(12, 768, 12, 32128),
    "bart-large": Shape(12, 1024, 16, 50265, 2 * 1026),
    "t5-large": Shape(24, 1024, 16, 32128),
}


def profile(model: str, technique: Technique) -> Profile:
    """The costs of one of `SHAPES` under a technique."""
    shape = SHAPES[model]
    layers = {
        ENCODER: tuple(_layer(shape, technique, cross=False, first=i == 0) for i in range(shape.layers)),
        DECODER: (_layer(shape, technique, cross=True, first=False),) * shape.layers,
    }
    table = SINGLE * shape.width * shape.vocabulary * (2 if technique == "full" else 1)
    return Profile(layers, {ENCODER: table, DECODER: table})


def job(batch: int, micro_batch: int | None) -> Job:
    """Mini-batches of samples that are all padded to 128 tokens."""
    return Job(batch, micro_batch, TOKENS, TOKENS, lengths={DECODER: ANSWER})


def _layer(shape: Shape, technique: Technique, *, cross: bool, first: bool) -> LayerProfile:
    d = shape.width
    weights = _numbers(d, cross)
    attended = 2 * d * d if cross else 0  # keys and values of the encoder's output
    trained = _trained(shape, technique, cross)
    extra = 0 if technique in ("full", "pac") else trained
    kept = SINGLE * _kept(shape, technique)
    return LayerProfile(
        flops=2.0 * (weights - attended + extra),
        pair_flops=4.0 * d,
        side_flops=6.0 * trained if technique == "pac" else 0.0,
        weight_bytes=SINGLE * weights,
        side_bytes=SINGLE * trained * (1 if technique == "full" else 2),
        hidden_bytes=SINGLE * d if technique == "pac" else 0,
        state_bytes=SINGLE * (d // REDUCTION if technique == "pac" else d),
        tap_bytes=SINGLE * d * (1 + first) if technique == "pac" else 0,
        kept_bytes=kept * (2 if cross else 1),
        back_passes={"full": 2.0, "adapters": 1.0, "lora": 1.0, "pac": 0.0}[technique],
        cross_flops=2.0 * attended,
        cross_kept_bytes=SINGLE * (2 * d // REDUCTION if technique == "pac" else 2 * d) if cross else 0,
        gradient_bytes=SINGLE * trained,
    )


def _numbers(width: int, cross: bool) -> int:
    """Weights of a layer: attention, and a feed-forward part four times as wide."""
    return (8 if cross else 4) * width * width + 8 * width * width


def _trained(shape: Shape, technique: Technique, cross: bool) -> int:
    d = shape.width
    if technique == "full":
        return _numbers(d, cross)
    if technique == "adapters":
        return 2 * 2 * d * BOTTLENECK
    if technique == "lora":
        return (2 if cross else 1) * 2 * 2 * d * RANK
    return d * (d // REDUCTION) + _numbers(d // REDUCTION, cross)


def _kept(shape: Shape, technique: Technique) -> int:
    """Numbers kept for a token of an encoder layer."""
    scores = KEPT_SCORES * shape.heads * TOKENS
    if technique == "pac":
        return round(shape.width + KEPT_WIDTHS["pac"] * shape.width / REDUCTION + scores)
    return round(KEPT_WIDTHS[technique] * shape.width + scores)
