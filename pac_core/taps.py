"""Where taps come from: the cache where they are known, the frozen backbone where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pac_core.cache import BoundCache
from pac_core.contracts.adapter import Rows, Taps
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, Boundary
from pac_core.errors import BadInput, RunFailed
from pac_core.examples import Example, Segment
from pac_core.hardware import fast_products, multiplies_bfloat16

Segments = dict[str, list[list[Segment]]]
"""For each stream and row, the segments of that row."""


@dataclass
class TapCounters:
    """What reading taps has cost so far: samples found in the cache whole, and samples for which the backbone ran."""

    cache_hits: int = 0
    backbone_samples: int = 0


class Room:
    """Memory for the taps of one batch after another; a batch is overwritten by the next."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, stream: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of this shape, a view of what is held, which grows as needed."""
        size = math.prod(shape)
        held = self._flat.get(stream)
        if held is None or held.numel() < size or held.dtype != dtype:
            held = self._flat[stream] = torch.empty(size, dtype=dtype)
        return held[:size].view(shape)


class TapReader:
    """Reads the taps of examples, running the backbone only for what the cache does not have.

    Args:
        backbone: runs what is missing; it may have been released.
        cache: where entries are looked up and written; None runs the backbone every time.
        taps: tap indices of each stream that is read, the target stream last.
        tokens_per_pass: tokens, padding included, that go through the backbone at once.
        half: whether bfloat16 entries are read as they are, where the hardware multiplies them as they are.

    Attributes:
        dtype: of the values that `read` returns.
        reopen: loads the same backbone again; called when an entry is missing, as a damaged one is, and the backbone
            has been released. None makes that an error.
    """

    def __init__(
        self,
        backbone: Backbone,
        cache: BoundCache | None,
        taps: dict[str, tuple[int, ...]],
        *,
        tokens_per_pass: int = 4096,
        half: bool = False,
    ) -> None:
        self.backbone = backbone
        self.cache = cache
        self.taps = taps
        self.tokens_per_pass = tokens_per_pass
        self.counters = TapCounters()
        self.reopen: Callable[[], Backbone] | None = None
        self.dtype = torch.float64 if backbone.info.dtype == torch.float64 else torch.float32
        cached_half = cache is not None and (cache.dtype, cache.entry_dtype) == (torch.float32, torch.bfloat16)
        if half and cached_half and multiplies_bfloat16(backbone.device):
            self.dtype = torch.bfloat16

    def read(self, examples: Sequence[Example], room: Room | None = None) -> dict[str, Taps]:
        """Taps of every stream for a batch, in the order of ``examples``; in ``room`` if one is given, which spares
        the cost of fresh memory.

        Raises:
            RunFailed: an entry is missing, the backbone has been released, and there is no `reopen`.
        """
        segments = {s: [of_stream(e, s) for e in examples] for s in self.taps}
        values, missing = self._look_up(segments, room or Room())
        self._compute(segments, values, missing)
        self.counters.backbone_samples += len(missing)
        self.counters.cache_hits += len(examples) - len(missing)
        return {s: Taps(values[s], rows_of(segments[s])) for s in self.taps}

    def read_each(self, batches: Iterable[Sequence[Example]]) -> Iterator[tuple[Sequence[Example], dict[str, Taps]]]:
        """Each batch with its taps, in order, while the store is told which entries come next.

        The taps lie in memory that is used again, so they are valid until the next batch is asked for. Decoding is not
        put on a thread of its own: it takes a fortieth of a step, and a second pool of compute threads slows the step
        down by a third (docs/decisions/004-no-read-ahead-thread.md).
        """
        room = Room()
        current: Sequence[Example] | None = None
        for following in batches:
            self._prefetch(following)
            if current is not None:
                yield current, self.read(current, room)
            current = following
        if current is not None:
            yield current, self.read(current, room)

    def _prefetch(self, examples: Sequence[Example]) -> None:
        if self.cache is not None:
            segments = [segment for s in self.taps for e in examples for segment in of_stream(e, s)]
            self.cache.prefetch(self.cache.keys(segments))

    def missing(self, examples: Sequence[Example]) -> list[int]:
        """Indices of the examples that are not whole in the cache (all of them without one)."""
        if self.cache is None:
            return list(range(len(examples)))
        absent: set[int] = set()
        for stream in self.taps:
            owners = [(i, segment) for i, e in enumerate(examples) for segment in of_stream(e, stream)]
            found = self.cache.contains(self.cache.keys([segment for _, segment in owners]))
            absent |= {i for (i, _), there in zip(owners, found) if not there}
        return sorted(absent)

    def _look_up(self, segments: Segments, room: Room) -> tuple[dict[str, Tensor], list[int]]:
        values, missing = {}, set[int]()
        for stream, rows in segments.items():
            flat = [segment for row in rows for segment in row]
            shape = (len(self.taps[stream]), sum(map(len, flat)), self.backbone.info.hidden_size)
            values[stream] = room.take(stream, shape, self.dtype)
            if self.cache is None:
                missing |= set(range(len(rows)))
                continue
            _, absent = self.cache.load(self.cache.keys(flat), [len(s) for s in flat], values[stream])
            owner = [i for i, row in enumerate(rows) for _ in row]
            missing |= {owner[i] for i in absent}
        return values, sorted(missing)

    def fill(
        self, examples: Sequence[Example], batch_size: int = 256, planned: Sequence[int] | None = None
    ) -> Iterator[int]:
        """Put the entries of examples that lack them into the cache, longest first, with next to no padding.

        Yields the number of samples done so far, after each batch; nothing is kept in memory. ``planned`` are those
        that an earlier, stopped call had set out to fill: what is left of them then goes through the backbone in the
        batches it would have been in, which decide the last bits.
        """
        missing = set(self.missing(examples))
        if missing:
            self.need_backbone(f"{len(missing)} samples are not in the cache")
        order = sorted(missing.union(planned or ()), key=lambda i: (-len(examples[i]), i))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            if missing.isdisjoint(chosen):
                continue
            batch = [examples[i] for i in chosen]
            segments = {s: [of_stream(e, s) for e in batch] for s in self.taps}
            for _ in self._run_backbone(segments, range(len(batch))):
                pass
            self.counters.backbone_samples += len(batch)
            yield start + len(batch)

    def replace_backbone(self, backbone: Backbone) -> None:
        """Put a freshly loaded backbone in the place of a released one.

        Raises:
            BadInput: it is not the same backbone.
        """
        if backbone.info.fingerprint != self.backbone.info.fingerprint:
            raise BadInput("the backbone's weights have changed since training began; train again on the new ones")
        self.backbone = backbone

    def close(self) -> None:
        """Close the cache; from now on the backbone runs every time."""
        if self.cache is not None:
            self.cache.close()
            self.cache = None

    def need_backbone(self, why: str) -> None:
        """Make sure that the backbone can run.

        Raises:
            RunFailed: it has been released, and there is no `reopen`; the text begins with ``why``.
        """
        if not self.backbone.released:
            return
        if self.reopen is None:
            raise RunFailed(
                f"{why}, but the backbone has been released; load it again and give it to replace_backbone(), "
                "or keep it while it is needed"
            )
        self.replace_backbone(self.reopen())

    def _compute(self, segments: Segments, values: dict[str, Tensor], missing: list[int]) -> None:
        """Run the backbone for the missing rows and put their taps in place."""
        if not missing:
            return
        self.need_backbone(f"{len(missing)} samples are not in the cache")
        starts = {s: _starts(segments[s]) for s in self.taps}
        for stream, row, j, entry in self._run_backbone(segments, missing):
            start = starts[stream][row][j]
            values[stream][:, start : start + entry.shape[1]].copy_(entry)

    def _run_backbone(self, segments: Segments, rows: Iterable[int]) -> Iterator[tuple[str, int, int, Tensor]]:
        """Taps of every segment of ``rows``, as (stream, row, index in the row, entry), once they are in the cache."""
        target = list(self.taps)[-1]
        wanted = [(row, j) for row in rows for j in range(len(segments[target][row]))]
        for group in self._passes([len(segments[target][row][j]) for row, j in wanted]):
            chosen = [wanted[i] for i in group]
            places = [segments[target][row][j] for row, j in chosen]
            with fast_products(sum(len(s) + (0 if s.context is None else len(s.context)) for s in places)):
                taps = compute_taps(self.backbone, places, self.taps)
            for stream, entries in taps.items():
                stored = self.store([segments[stream][row][j] for row, j in chosen], entries)
                yield from ((stream, row, j, entry) for (row, j), entry in zip(chosen, stored))

    def store(self, places: Sequence[Segment], entries: list[Tensor]) -> list[Tensor]:
        """Write the entries (taps, tokens, d) of segments; returns them as the cache will give them back, so that every
        epoch sees the same numbers."""
        if self.cache is None:
            return entries
        keys = self.cache.keys(places)
        self.cache.put(keys, entries)
        return [self.cache.as_read(entry, self.dtype) for entry in entries]

    def _passes(self, lengths: list[int]) -> list[list[int]]:
        """Groups of indices for one backbone pass each: like lengths together, at most ``tokens_per_pass`` tokens."""
        order = np.argsort(-np.array(lengths), kind="stable")
        groups: list[list[int]] = []
        for i in order.tolist():
            if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= self.tokens_per_pass:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups


def compute_taps(
    backbone: Backbone, segments: Sequence[Segment], taps: dict[str, tuple[int, ...]]
) -> dict[str, list[Tensor]]:
    """Taps (taps, tokens, d) of each segment, and of its encoder context if ``taps`` has two streams, on the CPU.

    All segments are of one stream and run as one padded batch.
    """
    target = segments[0].stream
    found: dict[str, list[Tensor]] = {}
    encoder: dict[str, Tensor] = {}
    if backbone.info.stream(target).cross:
        contexts = [s.context for s in segments if s.context is not None]
        hidden, mask, found[ENCODER] = _run(backbone, contexts, taps.get(ENCODER, ()), {})
        encoder = {"encoder": hidden, "encoder_mask": mask}
    _, _, found[target] = _run(backbone, segments, taps[target], encoder)
    return {stream: found[stream] for stream in taps}


def pad_segments(segments: Sequence[Segment], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask and token types of segments, each (rows, longest), padded on the right."""
    width = max(map(len, segments))
    ids = np.zeros((len(segments), width), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    types = np.zeros(ids.shape, dtype=np.int64)
    for row, segment in enumerate(segments):
        n = len(segment)
        ids[row, :n] = segment.input_ids
        mask[row, :n] = True
        if segment.token_type_ids is not None:
            types[row, :n] = segment.token_type_ids
    has_types = segments[0].token_type_ids is not None
    ids_, mask_ = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    return ids_, mask_, torch.from_numpy(types).to(device) if has_types else None


def rows_of(segments: Sequence[Sequence[Segment]]) -> Rows:
    """The rows that hold these segments, one row for each inner sequence."""
    lengths = tuple(sum(map(len, row)) for row in segments)
    if all(len(row) == 1 for row in segments):
        return Rows(lengths)
    owner = [np.full(len(segment), j) for row in segments for j, segment in enumerate(row)]
    return Rows(lengths, torch.from_numpy(np.concatenate(owner)))


def _run(
    backbone: Backbone, segments: Sequence[Segment], wanted: tuple[int, ...], encoder: dict[str, Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Last hidden states, mask, and the wanted taps of each segment."""
    stream = segments[0].stream
    ids, mask, types = pad_segments(segments, backbone.device)
    entry: Boundary = backbone.embed(stream, ids, mask, token_type_ids=types, **encoder)
    kept = [entry["hidden"]] if 0 in wanted else []
    last = entry["hidden"]
    for i, boundary in enumerate(backbone.run(stream, 0, backbone.info.stream(stream).layers, entry), start=1):
        last = boundary["hidden"]
        if i in wanted:
            kept.append(last)
    if not kept:
        return last, mask, []
    entries = [torch.stack([tap[row, : len(s)] for tap in kept]).cpu() for row, s in enumerate(segments)]
    return last, mask, entries


def of_stream(example: Example, stream: str) -> list[Segment]:
    """The segments of ``example`` in ``stream``; an encoder's also where it is only the context of a decoder's."""
    own = [s for s in example.segments if s.stream == stream]
    if own or stream != ENCODER:
        return own
    return [s.context for s in example.segments if s.stream == DECODER and s.context is not None]


def _starts(rows: Sequence[Sequence[Segment]]) -> list[list[int]]:
    """First token of each segment in the ragged tensor."""
    starts: list[list[int]] = []
    position = 0
    for row in rows:
        starts.append([])
        for segment in row:
            starts[-1].append(position)
            position += len(segment)
    return starts
