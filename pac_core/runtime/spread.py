"""Step 5 of a run: from pipeline stages to whole models, each with whole cache entries of its own samples.

The first epoch leaves on every device a slice of the side network, and of each text that it worked on the taps of its
own layers. The epochs after it are data parallel: every device needs the whole side network, and the whole entries of
the samples that it is to train on, its *own*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pac_core.cache import BoundCache
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.message import Message, Tag, Work
from pac_core.contracts.scheduler import Plan
from pac_core.contracts.transport import Transport
from pac_core.examples import Example, Segment
from pac_core.taps import of_stream

CHUNK_TOKENS = 2048
"""Tokens whose entries are on their way to a device at once."""

MESSAGE_TENSORS = 1000
"""Tensors in a message; `Message` allows 1,024."""

Streams = Mapping[str, tuple[int, ...]]
"""Tap indices by stream, as `pac_core.runtime.stage.stage_taps` gives them."""


@dataclass(frozen=True, eq=False)
class Holding:
    """What this device has, and where whole entries are to go.

    Attributes:
        share: its entries of its stage's taps; None for a stage without taps.
        whole: where the whole entries of its own samples go.
        stages: the taps of every stage of the plan, in order.
    """

    share: BoundCache | None
    whole: BoundCache
    stages: Sequence[Streams]


def spread_entries(
    transport: Transport,
    plan: Plan,
    holding: Holding,
    examples: Sequence[Example],
    owners: Sequence[int],
    *,
    sources: Sequence[int] | None = None,
    timeout: float | None = None,
    on_stored: Callable[[Sequence[int]], None] = lambda chosen: None,
) -> list[int]:
    """Bring the whole entries of each sample to its owner. Every device calls it with the same samples and owners.

    Entries travel in the cache's number format where torch has it (int8 as float32), a chunk to every device at a time;
    the next chunk's messages are under way while one is written.

    Args:
        examples: the whole data set.
        owners: for each example the rank that is to have it.
        sources: for each example the one rank that sends what it has of it; all do if None.
        on_stored: told the indices of this device's own examples that have arrived, a chunk at a time, in order.

    Returns:
        Indices of this device's own examples that could not be made whole, since an entry was missing or damaged: the
        backbone has to run for them again.

    Raises:
        PeerLost, TransportTimeout: another device is gone or does not answer; what has arrived is kept.
        StoreFull: no room; what was stored stays.
    """
    lines = [list(_chunks(examples, [i for i, o in enumerate(owners) if o == rank])) for rank in range(transport.size)]
    own, absent = lines[transport.rank], list[int]()
    streams = holding.stages[plan.place(transport.rank)[0]]
    others = [rank for rank in range(transport.size) if rank != transport.rank]
    coming = {0: _post(transport, others, 0)} if own else {}
    sends = []
    for turn in range(max(map(len, lines))):
        if turn + 1 < len(own):
            coming[turn + 1] = _post(transport, others, turn + 1)
        for rank in others:
            if turn < len(lines[rank]):
                chunk = lines[rank][turn]
                mine = [i for i in chunk if sources is None or sources[i] == transport.rank]
                message = Message(Tag("entries", 0, turn), {}, _held(holding.share, streams, examples, chunk, mine))
                sends.append(transport.isend(rank, message, timeout=timeout))
        if turn < len(own):
            pieces: dict[int, Mapping[str, Tensor]] = {
                transport.rank: _held(holding.share, streams, examples, own[turn], own[turn])
            }
            pieces |= {rank: work.wait(timeout).tensors for rank, work in zip(others, coming.pop(turn), strict=True)}
            absent += _put(plan, holding, examples, own[turn], pieces)
            on_stored(own[turn])
        while sends:
            sends.pop().wait(timeout)
    return absent


def spread_state(
    transport: Transport, plan: Plan, state: Mapping[str, Tensor], *, timeout: float | None = None
) -> dict[str, Tensor]:
    """The tensors of all stages together, on every device: weights, scales, an optimiser's moments.

    Args:
        state: this device's, the same on all devices of its group. Names that several stages have are taken from the
            first of them.
    """
    number, place = plan.place(transport.rank)
    firsts = {stage: plan.group(stage)[0] for stage in range(len(plan.stages)) if stage != number}
    coming = {stage: transport.irecv(rank, Tag("state", stage)) for stage, rank in firsts.items()}  # all at once
    sends = []
    if place == 0:
        messages = in_messages(Tag("state", number), {name: tensor.detach() for name, tensor in state.items()})
        others = [rank for rank in range(transport.size) if rank not in plan.group(number)]
        sends = [transport.isend(rank, message, timeout=timeout) for message in messages for rank in others]
    found: dict[str, Tensor] = {}
    for stage in range(len(plan.stages)):
        if stage == number:
            found = {**state, **found}
        else:
            tag = Tag("state", stage)
            found = {**_united(transport, firsts[stage], tag, coming[stage].wait(timeout), timeout), **found}
    for send in sends:
        send.wait(timeout)
    return found


def in_messages(tag: Tag, state: Mapping[str, Tensor]) -> list[Message]:
    """``state`` in messages of as many tensors as one may have; each says how many there are."""
    names = list(state)
    starts = range(0, max(len(names), 1), MESSAGE_TENSORS)
    pieces = [{name: state[name] for name in names[start : start + MESSAGE_TENSORS]} for start in starts]
    return [Message(tag._replace(micro_batch=i), {"messages": len(pieces)}, piece) for i, piece in enumerate(pieces)]


def received(transport: Transport, source: int, tag: Tag, timeout: float | None) -> dict[str, Tensor]:
    """What `in_messages` made messages of."""
    return _united(transport, source, tag, transport.irecv(source, tag).wait(timeout), timeout)


def _united(transport: Transport, source: int, tag: Tag, first: Message, timeout: float | None) -> dict[str, Tensor]:
    """As `received`, once the first message is there."""
    rest = [transport.irecv(source, tag._replace(micro_batch=i)) for i in range(1, first.header["messages"])]
    messages = [first, *(work.wait(timeout) for work in rest)]
    return {name: tensor for message in messages for name, tensor in message.tensors.items()}


def _post(transport: Transport, others: Sequence[int], turn: int) -> list[Work[Message]]:
    return [transport.irecv(rank, Tag("entries", 0, turn)) for rank in others]


def _chunks(examples: Sequence[Example], chosen: Sequence[int]) -> Iterator[list[int]]:
    """``chosen`` in runs of at most `CHUNK_TOKENS` tokens, or of one example."""
    chunk: list[int] = []
    tokens = 0
    for i in chosen:
        if chunk and tokens + len(examples[i]) > CHUNK_TOKENS:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(i)
        tokens += len(examples[i])
    if chunk:
        yield chunk


def _segments(examples: Sequence[Example], chunk: Sequence[int], stream: str) -> list[Segment]:
    """The different segments of a chunk, in an order that all devices agree on."""
    return list({s.content: s for i in chunk for s in of_stream(examples[i], stream)}.values())


def _held(
    share: BoundCache | None,
    streams: Streams,
    examples: Sequence[Example],
    chunk: Sequence[int],
    mine: Sequence[int],
) -> dict[str, Tensor]:
    """What this device has of ``mine``, examples of a chunk, by stream: ``<stream>.which`` (segments,) are numbers in
    `_segments`, and ``<stream>.taps`` (taps, tokens, d) their taps, one segment after another."""
    found: dict[str, Tensor] = {}
    if share is None:
        return found
    for stream in streams:
        segments = _segments(examples, chunk, stream)
        keys = share.keys(segments)
        wanted = {segment.content for segment in _segments(examples, mine, stream)}
        known = share.contains(keys)
        there = [i for i, segment in enumerate(segments) if known[i] and segment.content in wanted]
        if not there:
            continue
        lengths = [len(segments[i]) for i in there]
        values, damaged = share.load([keys[i] for i in there], lengths)
        parts = torch.split(values.to(share.entry_dtype), lengths, dim=1)
        sound = [i for i in range(len(there)) if i not in damaged]
        if sound:
            found[f"{stream}.which"] = torch.tensor([there[i] for i in sound])
            found[f"{stream}.taps"] = torch.cat([parts[i] for i in sound], dim=1)
    return found


def _put(
    plan: Plan,
    holding: Holding,
    examples: Sequence[Example],
    chunk: Sequence[int],
    pieces: Mapping[int, Mapping[str, Tensor]],
) -> list[int]:
    """Store the whole entries of a chunk from the ``pieces`` of each rank; returns the examples that lack some."""
    lacking: set[bytes] = set()
    for stream in dict.fromkeys(stream for streams in holding.stages for stream in streams):
        segments = _segments(examples, chunk, stream)
        wanted = [number for number, streams in enumerate(holding.stages) if stream in streams]
        parts: list[dict[int, Tensor]] = [{} for _ in segments]
        for rank, tensors in pieces.items():
            for i, piece in _by_segment(stream, segments, tensors):
                parts[i][plan.place(rank)[0]] = piece
        whole = [i for i, found in enumerate(parts) if len(found) == len(wanted)]
        entries = [torch.cat([parts[i][number] for number in wanted]) for i in whole]
        holding.whole.put(holding.whole.keys([segments[i] for i in whole]), entries)
        there = holding.whole.contains(holding.whole.keys(segments))
        lacking |= {segment.content for segment, known in zip(segments, there) if not known}
    return [i for i in chunk if any(s.content in lacking for s in _all_segments(examples[i]))]


def _by_segment(
    stream: str, segments: Sequence[Segment], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Number and taps (taps, tokens, d) of each segment that `_held` gave."""
    which = tensors[f"{stream}.which"].tolist() if f"{stream}.which" in tensors else []
    if which:
        yield from zip(which, torch.split(tensors[f"{stream}.taps"], [len(segments[i]) for i in which], dim=1))


def _all_segments(example: Example) -> list[Segment]:
    return [segment for stream in (ENCODER, DECODER) for segment in of_stream(example, stream)]
