"""The paper's models with what it compares, as profiles: from shapes alone.

Facts are those of its tables: layers, widths, heads, sequences of 128 tokens in float32. What is assumed is listed in
docs/reproduction.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pac_core.contracts.cluster import Job, LayerProfile, Profile

Technique = Literal["full", "adapters", "lora", "pac"]

TECHNIQUES: tuple[Technique, ...] = ("full", "adapters", "lora", "pac")

BLOCKS = "blocks"
"""Name of the one stream."""

TOKENS = 128
ANSWER = 1
"""Tokens of the decoder: the forward operations of figure 3 are those of a single one, to three digits."""

SINGLE = 4
REDUCTION = 8

BOTTLENECK = 64
"""Width of adapters; with two in each layer, T5-Large has the 50 MB of them that table 1 shows."""

RANK = 32
"""Of LoRA at queries and values; T5-Large then has the 40 MB of gradients that table 1 shows."""

KEPT_WIDTHS = {"full": 19.5, "adapters": 13.0, "lora": 14.0, "pac": 19.5}
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
    """The costs of one of `SHAPES` under a technique, an encoder layer and the decoder layer of its number as one."""
    shape = SHAPES[model]
    layers = tuple(_block(shape, technique, first=i == 0) for i in range(shape.layers))
    table = SINGLE * shape.width * shape.vocabulary * (3 if technique == "full" else 1)
    return Profile({BLOCKS: layers}, {BLOCKS: table})


def job(batch: int, micro_batch: int | None) -> Job:
    """Mini-batches of samples that are all padded to 128 tokens."""
    return Job(batch, micro_batch, TOKENS, TOKENS)


def _block(shape: Shape, technique: Technique, *, first: bool) -> LayerProfile:
    d, part = shape.width, ANSWER / TOKENS  # what the decoder does for its own tokens, a token of the encoder
    encoder, decoder, attended = 12 * d * d, 16 * d * d, 2 * d * d
    in_encoder, in_decoder = _trained(shape, technique, cross=False), _trained(shape, technique, cross=True)
    trained = in_encoder + in_decoder
    weights = encoder + decoder
    passed = encoder + attended + (decoder - attended) * part
    learnt = in_encoder + in_decoder * part
    side = technique == "pac"
    added = 0.0 if technique in ("full", "pac") else learnt
    return LayerProfile(
        flops=2.0 * (passed + added),
        pair_flops=4.0 * d,
        side_flops=6.0 * learnt if side else 0.0,
        weight_bytes=SINGLE * weights,
        side_bytes=SINGLE * trained * (1 if technique == "full" else 2),
        hidden_bytes=SINGLE * d if side else 0,
        state_bytes=SINGLE * (d // REDUCTION if side else d),
        tap_bytes=round(SINGLE * d * (1 + first + part)) if side else 0,
        kept_bytes=round(SINGLE * _kept(shape, technique) * (1 + 2 * part)),
        back_passes={"full": 2.0, "adapters": 1.0, "lora": 1.0, "pac": 0.0}[technique],
        gradient_bytes=SINGLE * trained,
    )


def _trained(shape: Shape, technique: Technique, *, cross: bool) -> int:
    """Weights that are trained in a layer of the encoder, or of the decoder, which has cross-attention as well."""
    d, r = shape.width, shape.width // REDUCTION
    layer = 16 if cross else 12
    if technique == "full":
        return layer * d * d
    if technique == "adapters":
        return 2 * 2 * d * BOTTLENECK
    if technique == "lora":
        return (2 if cross else 1) * 2 * 2 * d * RANK
    return d * r + layer * r * r


def _kept(shape: Shape, technique: Technique) -> float:
    """Numbers kept for a token of the encoder, with keys and values for the decoder."""
    scores = KEPT_SCORES * shape.heads * TOKENS / (REDUCTION if technique == "pac" else 1)
    width = shape.width // (REDUCTION if technique == "pac" else 1)
    taps = shape.width if technique == "pac" else 0
    return taps + (KEPT_WIDTHS[technique] + 2) * width + scores
