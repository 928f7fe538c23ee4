"""What transformers' own forward says: the reference that `BackboneSuite` compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pac_core.contracts.backbone import DECODER, ENCODER, Backbone

Taps = dict[str, list[Tensor]]
Ranges = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Batch:
    """Padded rows, as a tokenizer would give them.

    Attributes:
        ids, mask: (rows, tokens) of the first stream.
        decoder_ids, decoder_mask: (rows, target tokens), only for encoder-decoder models.
    """

    ids: Tensor
    mask: Tensor
    decoder_ids: Tensor | None = None
    decoder_mask: Tensor | None = None

    def of(self, stream: str) -> tuple[Tensor, Tensor]:
        """Ids and mask that ``stream`` reads."""
        if stream == DECODER and self.decoder_ids is not None and self.decoder_mask is not None:
            return self.decoder_ids, self.decoder_mask
        return self.ids, self.mask


def make_batch(model: Any, lengths: Sequence[int], targets: Sequence[int], side: str, seed: int) -> Batch:
    """Random rows of these lengths, padded on ``side``; target rows (of the decoder) are padded on the right."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids, mask = _pad(config, lengths, side, generator)
    if not config.is_encoder_decoder:
        return Batch(ids, mask)
    decoder_ids, decoder_mask = _pad(config, targets, "right", generator)
    decoder_ids[:, 0] = config.decoder_start_token_id
    return Batch(ids, mask, decoder_ids, decoder_mask)


def _pad(config: Any, lengths: Sequence[int], side: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokens, padding = max(lengths), config.pad_token_id or 0
    places = torch.arange(tokens).expand(len(lengths), tokens)
    counts = torch.tensor(lengths)[:, None]
    mask = places < counts if side == "right" else places >= tokens - counts
    # the small ids are special tokens; models read a meaning into the padding id
    ids = torch.randint(4, config.vocab_size, mask.shape, generator=generator)
    return ids.masked_fill(~mask, padding), mask


@torch.no_grad()
def model_taps(model: Any, stream: str, batch: Batch, **extra: Any) -> Taps:
    """The hidden states of the model's own forward, per stream; ``stream`` names that of a model with one."""
    if batch.decoder_ids is None:
        output = model.base_model(batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True, **extra)
        return {stream: list(output.hidden_states)}
    output = model(
        batch.ids,
        attention_mask=batch.mask.long(),
        decoder_input_ids=batch.decoder_ids,
        decoder_attention_mask=batch.decoder_mask.long() if batch.decoder_mask is not None else None,
        output_hidden_states=True,
        **extra,
    )
    return {ENCODER: list(output.encoder_hidden_states), DECODER: list(output.decoder_hidden_states)}


def backbone_taps(slices: Sequence[Backbone], ranges: Sequence[Ranges], batch: Batch) -> Taps:
    """The taps that a chain of backbones gives, each running its range of layers."""
    taps: Taps = {}
    extra: dict[str, Tensor] = {}
    for stream in slices[0].info.streams:
        ids, mask = batch.of(stream.name)
        boundary = slices[0].embed(stream.name, ids, mask, **(extra if stream.cross else {}))
        taps[stream.name] = [boundary["hidden"]]
        for part, held in zip(slices, ranges, strict=True):
            following = list(part.run(stream.name, *held[stream.name], boundary))
            taps[stream.name] += [after["hidden"] for after in following]
            boundary = following[-1] if following else boundary
        extra = {"encoder": boundary["hidden"], "encoder_mask": mask}
    return taps


def whole(backbone: Backbone) -> Ranges:
    """All layers of all streams."""
    return {stream.name: (0, stream.layers) for stream in backbone.info.streams}


def split(backbone: Backbone, cuts: Sequence[float]) -> list[Ranges]:
    """Ranges of layers, cut in every stream after these fractions of its layers."""
    places = {s.name: [0, *(round(cut * s.layers) for cut in sorted(cuts)), s.layers] for s in backbone.info.streams}
    return [{name: (at[i], at[i + 1]) for name, at in places.items()} for i in range(len(cuts) + 1)]


def differing_taps(own: Taps, reference: Taps, batch: Batch) -> list[str]:
    """Names of the taps that are not bit for bit the reference's at real tokens; also wrong counts and dtypes."""
    wrong = []
    for name, expected in reference.items():
        mask = batch.of(name)[1]
        if len(own[name]) != len(expected):
            wrong.append(f"{name} has {len(own[name])} taps, not {len(expected)}")
        pairs = enumerate(zip(own[name], expected, strict=False))
        wrong += [f"{name} b_{i}" for i, (t, r) in pairs if t.dtype != r.dtype or not torch.equal(t[mask], r[mask])]
    return wrong


def decode(slices: Sequence[Backbone], ranges: Sequence[Ranges], batch: Batch, first: int, **extra: Tensor) -> Tensor:
    """Last hidden states (rows, tokens, d) of the decoder, fed ``first`` tokens at once and then one at a time.

    ``extra`` is the encoder's output and mask, for a decoder that attends to it.
    """
    ids, mask = batch.of(DECODER)
    pasts = {id(part): part.new_past() for part in slices}
    steps = []
    for start, end in [(0, first), *((at, at + 1) for at in range(first, ids.shape[1]))]:
        past = pasts[id(slices[0])]
        boundary = slices[0].embed(DECODER, ids[:, start:end], mask[:, :end], past=past, **extra)
        for part, held in zip(slices, ranges, strict=True):
            *_, boundary = boundary, *part.run(DECODER, *held[DECODER], boundary, past=pasts[id(part)])
        steps.append(boundary["hidden"])
    return torch.cat(steps, dim=1)
