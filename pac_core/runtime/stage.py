"""What one pipeline stage computes: its slices of the backbone and of the side network; the last one the loss too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pac_core.cache import ActivationCache, BoundCache
from pac_core.contracts.adapter import Memory, Rows, SideNetwork, Taps
from pac_core.contracts.backbone import DECODER, ENCODER, BackboneInfo, Boundary, Stream, tap_indices
from pac_core.errors import BadInput
from pac_core.examples import Example, Segment
from pac_core.hardware import SHORT, fast_products
from pac_core.model import PacModel
from pac_core.runtime.parts import STATISTICS, Part
from pac_core.taps import TapReader, of_stream, pad_segments, rows_of

Slices = Mapping[str, tuple[int, int]]
"""Per stream the half-open range [first, last) of backbone layers."""


@dataclass(frozen=True, eq=False)
class Passed:
    """What a forward pass leaves for the backward pass: the leaves and roots of its graph.

    Attributes:
        inputs: side states that came from the stage before, by name.
        outputs: side states for the next stage, by name.
        loss: () the rows' share of the batch's mean loss, on the last stage.
        tokens: of the rows; 0 for rows so long that `fast_products` would harm the backward pass.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    loss: Tensor | None
    tokens: int


class Stage:
    """Runs parts of micro-batches through a slice of a model, forward and later backward.

    Only hidden states b and side states a go in and out (see `Part`), and only gradients of a come back: the backbone
    is frozen, and runs under ``torch.no_grad`` as its contract says, since its taps enter the side network's graph.
    Taps go to the stage's own share of the cache.

    Args:
        model: cut to the stage with `cut_model`. Its backbone must hold the layers of ``layers``.
        layers: the stage's slices of the backbone.
        share: where this device keeps the taps that it computes; made by `bind_share`, None keeps none.
    """

    def __init__(self, model: PacModel, layers: Slices, share: BoundCache | None = None) -> None:
        self.model = model
        self.layers = layers
        self.chain = chain(model.info, model.side.target)
        final = self.chain[-1]
        self.is_last = layers.get(final.name, (0, 0))[1] == final.layers
        self._taps = side_taps(model.side, layers)
        self._reader = TapReader(model.backbone, share, stage_taps(model.side, layers), half=model.side.half_taps)

    @property
    def share(self) -> BoundCache | None:
        """Where the taps go that this device computes; None keeps none."""
        return self._reader.cache

    def missing(self, examples: Sequence[Example]) -> list[int]:
        """Indices of the examples of which this device's share of the cache lacks a tap of the stage."""
        return self._reader.missing(examples) if self._reader.taps else []

    def forward(self, part: Part) -> tuple[Part, Passed]:
        """Run a part through the stage.

        Returns:
            What the next stage needs (without tensors after the last stage), and what `backward` needs.
        """
        part = self._here(part)
        inputs = {name: tensor.requires_grad_() for name, tensor in part.tensors.items() if name.endswith(".a")}
        lengths = [len(example) for example in part.examples]
        with fast_products(sum(lengths)):
            for stream in self._streams():
                part, taps = self.run_backbone(stream, part)
                part = self.run_side(stream.name, part, taps)
            loss = self.loss(part) if self.is_last else None
        outputs = {} if self.is_last else {n: tensor for n, tensor in part.tensors.items() if n.endswith(".a")}
        passed = Passed(inputs, outputs, loss, sum(lengths) if max(lengths) <= SHORT else 0)
        return replace(part, tensors={}) if self.is_last else part, passed

    def fill(self, part: Part) -> Part:
        """Run a part through the backbone alone, so that its taps are in the cache; returns what the next stage needs,
        and after the last stage b_L of the target stream, as the cache gives it back."""
        part = self._here(part)
        with fast_products(sum(map(len, part.examples))):
            for stream in self._streams():
                part, _ = self.run_backbone(stream, part)
        name = f"{self.chain[-1].name}.b"
        return replace(part, tensors={name: part.tensors[name]}) if self.is_last else part

    def backward(self, passed: Passed, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add to the parameters' gradients; returns those of ``passed.inputs``.

        Args:
            gradients: those of ``passed.outputs``, from the next stage; empty on the last one.
        """
        roots = [(out, gradients[name].to(out.device)) for name, out in passed.outputs.items() if out.requires_grad]
        if passed.loss is not None:
            roots = [(passed.loss, torch.ones_like(passed.loss))]
        with fast_products(passed.tokens):
            torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in passed.inputs.items()
        }

    def _here(self, part: Part) -> Part:
        device = self.model.backbone.device
        return replace(part, tensors={name: tensor.to(device) for name, tensor in part.tensors.items()})

    def _streams(self) -> list[Stream]:
        """The streams that this stage has layers of."""
        return [stream for stream in self.chain if stream.name in self.layers]

    def run_backbone(self, stream: Stream, part: Part) -> tuple[Part, Tensor | None]:
        """``part`` with ``<stream>.b`` after the slice, and the slice's taps (taps, tokens, d) as the cache gives them
        back."""
        name = stream.name
        first, last = self.layers[name]
        segments = [segment for example in part.examples for segment in of_stream(example, name)]
        rows = _lengths(segments)
        wanted = self._reader.taps.get(name, ())
        boundary = self._boundary(stream, segments, part)
        tap = rows.unpad(boundary["hidden"])
        taps = tap.new_empty(len(wanted), *tap.shape)  # filled as layers run, so that taps are in memory once
        if 0 in wanted:
            taps[0] = tap
        for index, after in enumerate(self.model.backbone.run(name, first, last, boundary), start=first + 1):
            tap = rows.unpad(after["hidden"])
            if index in wanted:
                taps[wanted.index(index)] = tap
        if not wanted:
            return replace(part, tensors={**part.tensors, f"{name}.b": tap}), None
        taps = self._stored(segments, taps)
        if self.is_last and stream is self.chain[-1]:
            tap = taps[-1]  # rounded as the cache does, like all that the side network and the head read
        return replace(part, tensors={**part.tensors, f"{name}.b": tap}), taps

    def _stored(self, segments: Sequence[Segment], taps: Tensor) -> Tensor:
        """``taps`` (taps, tokens, d) of segments, written to the cache, as they will come back; in their memory where
        that has the right number format."""
        cache, dtype = self._reader.cache, self._reader.dtype
        if cache is None:
            return taps.to(dtype)
        found = taps.to(dtype)
        lengths = [len(segment) for segment in segments]
        for segment, entry, place in zip(segments, torch.split(taps.cpu(), lengths, 1), torch.split(found, lengths, 1)):
            key = cache.keys([segment])
            cache.put(key, [entry])
            place.copy_(cache.as_read(entry, dtype))
        return found

    def _boundary(self, stream: Stream, segments: Sequence[Segment], part: Part) -> Boundary:
        """The boundary before the slice: embedded, or from what the stage before sent."""
        encoder: dict[str, Tensor] = {}
        if stream.cross:
            context = _lengths([segment for example in part.examples for segment in of_stream(example, ENCODER)])
            hidden = part.tensors[f"{ENCODER}.b"]
            encoder = {"encoder": context.pad(hidden), "encoder_mask": _mask(context, hidden.device)}
        if self.layers[stream.name][0] == 0:
            ids, mask, types = pad_segments(segments, self.model.backbone.device)
            return self.model.backbone.embed(stream.name, ids, mask, token_type_ids=types, **encoder)
        rows, hidden = _lengths(segments), part.tensors[f"{stream.name}.b"]
        mask = _mask(rows, hidden.device)
        positions = torch.arange(rows.width, device=hidden.device).expand_as(mask).masked_fill(~mask, 0)
        return {"hidden": rows.pad(hidden), "mask": mask, "positions": positions, **encoder}

    def run_side(self, stream: str, part: Part, taps: Tensor | None) -> Part:
        """``part`` with ``<stream>.a`` after the side layers that read ``taps`` (taps, tokens, d), if any."""
        side, rows = self.model.side, self._rows(stream, part)
        if taps is None:
            return part
        memory = self._memory(part) if stream == DECODER and ENCODER in side.reads else None
        values, indices = list(taps), list(self._taps[stream])
        if indices[0] == 0:
            state = side.enter(stream, values.pop(0), rows)
            indices.pop(0)
        else:
            state = rows.pad(part.tensors[f"{stream}.a"])
        for index, tap in zip(indices, values, strict=True):
            state = side.layer(stream, index, tap, state, rows, memory=memory)
        return replace(part, tensors={**part.tensors, f"{stream}.a": rows.unpad(state)})

    def _memory(self, part: Part) -> Memory:
        rows = self._rows(ENCODER, part)
        return Memory(rows.pad(part.tensors[f"{ENCODER}.a"]), rows)

    def _rows(self, stream: str, part: Part) -> Rows:
        """The side network's rows: one for each example."""
        rows = rows_of([of_stream(example, stream) for example in part.examples])
        match = part.tensors.get(f"{stream}.match")
        return rows if match is None else replace(rows, match=match.t())

    def loss(self, part: Part) -> Tensor:
        """() what these rows add to the mean loss of the whole batch."""
        stream = self.model.side.target
        state, learnt = part.tensors[f"{stream}.a"], self.model.learnt(part.examples)
        if learnt == 0:
            return state.sum() * 0.0  # a mean over nothing would be NaN
        last = Taps(part.tensors[f"{stream}.b"][None], self._rows(stream, part))
        mean = self.model.loss_of_states(part.examples, state, last, part.tensors.get(STATISTICS))
        return mean * (learnt / part.total)


def chain(info: BackboneInfo, target: str) -> tuple[Stream, ...]:
    """The streams that run for a task, in order: the target and what it attends to."""
    names = [stream.name for stream in info.streams]
    return info.streams[: names.index(target) + 1]


def head_slice(model: PacModel) -> Slices:
    """The slice that is the language-model head and no layer."""
    end = model.info.stream(model.side.target).layers
    return {model.side.target: (end, end)}


def stage_taps(side: SideNetwork, layers: Slices) -> dict[str, tuple[int, ...]]:
    """Per stream that ``side`` reads, the indices of the taps that the backbone layers ``layers`` give; none is left
    out, b_0 comes with first = 0."""
    found = {}
    for stream in side.reads:
        first, last = layers.get(stream, (0, 0))
        taps = tap_indices(side.info.stream(stream).layers, side.config.tap_every)
        held = tuple(t for t in taps if first < t <= last or t == first == 0 < last)
        if held:
            found[stream] = held
    return found


def side_taps(side: SideNetwork, layers: Slices) -> dict[str, tuple[int, ...]]:
    """As `stage_taps`, as numbers of the side network's layers."""
    found = {}
    for stream, held in stage_taps(side, layers).items():
        taps = tap_indices(side.info.stream(stream).layers, side.config.tap_every)
        found[stream] = tuple(taps.index(t) for t in held)
    return found


def check_cuts(side: SideNetwork, layers: Slices) -> None:
    """Make sure that the side network can be cut where the backbone is.

    Raises:
        BadInput: a stage would begin before the first layer that is tapped, so that the first side layer would be apart
            from the side network's entry.
    """
    for stream, held in side_taps(side, layers).items():
        if held[0] == 1:
            raise BadInput(
                f"a stage begins at layer {layers[stream][0]} of stream '{stream}', before the first tap; "
                f"begin it at layer {side.config.tap_every} or later"
            )


def bind_share(cache: ActivationCache, model: PacModel, layers: Slices) -> BoundCache | None:
    """A device's share of the cache: entries of the taps of its stage; None where the stage has no tap."""
    taps = stage_taps(model.side, layers)
    return cache.bind(model.info, taps, model=model.model_name) if taps else None


def cut_model(model: PacModel, layers: Slices) -> PacModel:
    """Drop from ``model`` every parameter that the stage of ``layers`` does not train; returns it.

    Parameters and buffers keep their names, so the state dicts of all stages add up to the whole model's.

    Raises:
        BadInput: as `check_cuts`.
    """
    side = model.side
    check_cuts(side, layers)
    held = side_taps(side, layers)
    for stream in side.reads:
        numbers = held.get(stream)
        first, last = (1, 0) if numbers is None else (max(numbers[0] - 1, 0), numbers[-1])
        side.keep(stream, first, last)
    final = side.info.stream(side.target)
    if layers.get(final.name, (0, 0))[1] < final.layers:
        model.head = model.matcher = None
    return model


def _lengths(segments: Sequence[Segment]) -> Rows:
    """The backbone's rows: one for each segment."""
    return Rows(tuple(map(len, segments)))


def _mask(rows: Rows, device: torch.device) -> Tensor:
    """(rows, width) bool, True for real tokens."""
    return (torch.arange(rows.width)[None] < torch.tensor(rows.lengths)[:, None]).to(device)
