"""The scales that side network and head work in, where the model is spread over pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pac_core.contracts.adapter import Taps
from pac_core.contracts.message import Message, Tag
from pac_core.errors import BadInput
from pac_core.model import PacModel
from pac_core.runtime.parts import Part
from pac_core.runtime.pipeline import Pipeline
from pac_core.taps import of_stream, rows_of

_TAG = Tag("scales")


def calibrate_stage(pipeline: Pipeline, features: Sequence[Tensor], targets: Tensor | None = None) -> None:
    """Set this device's scales before training, as `PacModel.calibrate` does on a single device.

    The last stage's devices bring together what they have; the same scales come out on all of them. The other stages
    have none. Every device of the plan calls this.

    Args:
        pipeline: this device's.
        features: what `Pipeline.fill` returned for the samples that scales are set from, with `features_of` to keep.
        targets: (samples,) those of regression; needed on the first device of the last stage.

    Raises:
        BadInput: the task reads texts apart: its scales depend on all taps of a text, which no stage has.
    """
    stage, transport, group = pipeline.stage, pipeline.transport, pipeline.group
    if stage.model.task.apart:
        raise BadInput("the scales of texts read apart are set once the cache holds their taps; fill the cache first")
    if not stage.is_last:
        stage.model.calibrated.fill_(True)
        return
    root = group[0]
    if transport.rank == root:
        coming = [transport.irecv(rank, _TAG) for rank in group[1:]]
        messages = [work.wait(pipeline.timeout) for work in coming]
        found = [*features, *(message.tensors["features"] for message in messages if message.tensors)]
        stage.model.set_scales(torch.cat(found), targets=targets)
    else:
        message = Message(_TAG, {}, {"features": torch.cat(list(features))} if features else {})
        transport.isend(root, message, timeout=pipeline.timeout).wait(pipeline.timeout)
    for buffer in stage.model.buffers():
        transport.broadcast(buffer, root, group, timeout=pipeline.timeout)


def features_of(model: PacModel, part: Part) -> Tensor:
    """`PacModel.frozen_features` of a part with b_L of the target stream."""
    stream = model.side.target
    device: torch.device = next(model.parameters()).device
    rows = rows_of([of_stream(example, stream) for example in part.examples])
    return model.frozen_features({stream: Taps(part.tensors[f"{stream}.b"].to(device)[None], rows)})
