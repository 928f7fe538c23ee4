"""Rows on their way between stages: cut, joined and packed, they stay what they were."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.examples import Example, Segment
from pac_core.runtime.parts import Part, from_message, join, to_message
from pac_core.taps import of_stream


def ids(draw: Any) -> np.ndarray:
    return np.array(draw(st.lists(st.integers(0, 60), min_size=1, max_size=5)), dtype=np.int32)


@st.composite
def examples(draw: Any) -> list[Example]:
    """Texts, pairs, answers and answers whose source is only a context; with every kind of target or none."""
    kind = draw(st.sampled_from(["text", "pair", "answer", "context"]))
    target = draw(st.sampled_from(["class", "number", "none"]))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        source = Segment(ENCODER, ids(draw), None)
        if kind in ("text", "pair"):
            texts = [ids(draw) for _ in range(1 + (kind == "pair"))]
            segments = tuple(Segment(ENCODER, t, np.arange(len(t), dtype=np.int8) % 2) for t in texts)
        else:
            answer = Segment(DECODER, ids(draw), None, source)
            segments = (source, answer) if kind == "answer" else (answer,)
        value: Any = {"class": draw(st.integers(0, 9)), "number": draw(st.floats(-9, 9)), "none": None}[target]
        if kind in ("answer", "context") and target != "none":
            value = np.where(segments[-1].input_ids % 3, segments[-1].input_ids, -100).astype(np.int64)
        found.append(Example(segments, value))
    return found


def part_of(rows: list[Example]) -> Part:
    """A part whose tensors hold numbers that tell every place from every other."""
    stream = rows[0].segments[-1].stream
    tokens = sum(len(s) for row in rows for s in of_stream(row, stream))
    hidden = torch.arange(tokens * 2.0).view(tokens, 2)
    return Part(rows, 17, {f"{stream}.b": hidden, f"{stream}.a": -hidden, "statistics": torch.rand(len(rows), 3)})


def assert_alike(one: Part, other: Part) -> None:
    assert one.total == other.total
    assert len(one.examples) == len(other.examples)
    for a, b in zip(one.examples, other.examples):
        assert [s.content for s in a.segments] == [s.content for s in b.segments]
        assert type(a.target) is type(b.target)
        assert np.array_equal(a.target, b.target) if a.target is not None else b.target is None
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@given(examples(), st.data())
def test_rows_cut_sent_and_joined_are_what_they_were(rows: list[Example], data: Any) -> None:
    part = part_of(rows)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1)))) if len(rows) > 1 else []
    pieces = [part.rows(first, last) for first, last in zip([0, *cuts], [*cuts, len(rows)])]
    arrived = [from_message(*to_message(piece)) for piece in pieces]
    for piece, other in zip(pieces, arrived):
        assert_alike(piece, other)
    assert_alike(join(arrived), part)


@given(examples())
def test_a_decoders_context_arrives_as_the_source_it_is(rows: list[Example]) -> None:
    for example in from_message(*to_message(part_of(rows))).examples:
        for segment in example.segments:
            if segment.context is not None and len(example.segments) == 2:
                assert segment.context is example.segments[0]
