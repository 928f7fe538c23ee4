"""Padded tensors, as third-party trainers batch them, into the examples that PAC works on."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pac_core.contracts.backbone import DECODER, ENCODER, Backbone
from pac_core.errors import BadInput
from pac_core.examples import IGNORE, Example, Segment, Task


def examples_from_tensors(
    task: Task,
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    labels: Tensor | None,
    decoder_input_ids: Tensor | None,
) -> list[Example]:
    """One example a row, padding gone; arguments as in `pac_core.model.PacModel.forward`.

    Raises:
        BadInput: a row has no real token, or an encoder-decoder model got neither labels nor decoder ids.
    """
    ids = input_ids.cpu().numpy().astype(np.int32)
    mask = np.ones(ids.shape, bool) if attention_mask is None else attention_mask.cpu().numpy().astype(bool)
    types = None if token_type_ids is None else token_type_ids.cpu().numpy().astype(np.int8)
    known = None if labels is None else labels.cpu().numpy()
    if not mask.any(axis=1).all():
        raise BadInput(f"row {int(mask.any(axis=1).argmin())} of the batch has no token: its attention mask is all 0")
    examples = []
    for row, real in enumerate(mask):
        name = ENCODER if backbone.info.streams[0].name == ENCODER else DECODER
        segment = Segment(name, ids[row, real], None if types is None else types[row, real])
        label = None if known is None else known[row]
        if not task.generates:
            examples.append(Example((segment,), None if label is None else label.item()))
        elif backbone.info.is_encoder_decoder:
            decoder = None if decoder_input_ids is None else decoder_input_ids[row].cpu().numpy()
            examples.append(_seq2seq(segment, label, decoder, backbone))
        else:
            examples.append(Example((segment,), None if label is None else _shifted(label[real])))
    return examples


def _shifted(labels: np.ndarray) -> np.ndarray:
    """What each position predicts: the label of the next one."""
    return np.append(labels[1:], IGNORE).astype(np.int64)


def _seq2seq(source: Segment, labels: np.ndarray | None, decoder: np.ndarray | None, backbone: Backbone) -> Example:
    """Labels are cut after the last real one; decoder ids, if given, are taken as they are."""
    start = backbone.decoder_start()
    if labels is not None:
        kept = int(np.flatnonzero(labels != IGNORE).max(initial=0)) + 1
        target = labels[:kept].astype(np.int64)
        fed = np.where(target == IGNORE, backbone.config.pad_token_id or 0, target)[:-1]
        ids = np.concatenate([[start], fed]) if decoder is None else decoder[:kept]
    elif decoder is not None:
        target, ids = None, decoder
    else:
        raise BadInput("an encoder-decoder model needs labels or decoder_input_ids")
    return Example((source, Segment(DECODER, ids.astype(np.int32), None, source)), target)
