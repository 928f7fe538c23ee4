"""Pieces that were tampered with crash nothing, and take no memory that they merely claim.

``PAC_FUZZ_FRAMES=100000`` asks for the long run.
"""

import contextlib
import os
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pac_core.contracts.message import Message, Tag, Work
from pac_core.errors import PeerLost, Refused
from pac_core.wire import Kind, WireError, pack_head, pack_message
from pac_plugins.transports.exchange import Exchange
from pac_plugins.transports.greeting import Identity, check_answer

FRAMES = int(os.environ.get("PAC_FUZZ_FRAMES", "2000"))
PIECES = 10  # to one exchange

TAGS = [Tag("forward", 0, 0), Tag("backward", 1, 2)]
INTERESTING = [0, 1, 2, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -1, -(2**63), 2**64 - 1]
SHAPES = [[2**62], [2**31, 2**31], [-1], [0, 2**60], [1] * 100, [3.0], ["3"], [True], None, 7, [2**40]]


def good_pieces() -> list[list[bytes]]:
    """Pieces of every kind, as a peer that keeps to the protocol would send them."""
    tensors = {"x": torch.arange(5.0), "e": torch.empty(0, 3), "h": torch.ones(3, 2, dtype=torch.bfloat16)}
    pieces = [[pack_head(Kind.BEAT)], [pack_head(Kind.WELCOME)], [pack_head(Kind.REFUSE, "no")]]
    for number, tag in enumerate(TAGS, start=1):
        pieces.append([pack_head(Kind.POST, number, tag)])
        packed = pack_message(Message(tag, {"n": 1, "l": [1, {"a": b"b"}]}, tensors), 1 << 30)
        pieces += [list(map(bytes, piece)) for piece in packed.pieces(number)]
        pieces.append([pack_head(Kind.MORE, number), b"abcd"])
    pieces.append([Identity(1, 2, {"model": "abc"}).hello()])
    return pieces


GOOD = good_pieces()


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Well-formed msgpack with fields that are nearly right."""
    number = draw(st.sampled_from([1, 2, *INTERESTING]))
    tag = draw(st.sampled_from([*map(list, TAGS), [], ["x"], ["forward", 0, 2**40], ["", 0, 0], "tag", None]))
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(["f32", "i8", "c64", "", 3]))
    header = draw(st.sampled_from([{}, {"a": 1}, {1: 2}, [], None]))
    if draw(st.booleans()):  # right but for the tensors, so that these are looked at
        return pack_head(Kind.DATA, 1, TAGS[0], {}, [["x", dtype, shape]])
    kind = draw(st.sampled_from([*Kind]))
    fields: list[Any] = [number, tag, header, [["x", dtype, shape]] * draw(st.integers(0, 3))]
    return pack_head(kind, *fields[: draw(st.integers(0, 4))])


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A piece with something wrong in it, mostly."""
    piece = list(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(piece) - 1)) if piece else 0
        match draw(st.integers(0, 6)) if piece else 6:
            case 0 | 1 if piece[at]:
                data = bytearray(piece[at])
                data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
                piece[at] = bytes(data)
            case 2:
                piece[at] = piece[at][: draw(st.integers(0, len(piece[at])))]
            case 3:
                cut = draw(st.integers(0, len(piece[at])))
                piece[at] = piece[at][:cut] + draw(st.binary(max_size=40)) + piece[at][cut:]
            case 4:
                del piece[at]
            case 5:
                piece[0] = draw(heads())
            case _:
                piece.insert(at, draw(st.binary(max_size=60)))
    return piece


def claims(limit: int) -> list[list[bytes]]:
    """Heads of few bytes that announce a lot."""
    arrays = b"\xdd\xff\xff\xff\xff" * 20
    nested = b"\xdc\x04\x00" * 900
    tensor = pack_head(Kind.DATA, 1, TAGS[0], {}, [["x", "f32", [limit // 4]]])
    binary = b"\x92\x02\xc6\xff\xff\xff\xff" + b"x" * 50
    return [[arrays], [nested], [tensor], [binary], [b"\xdf\xff\xff\xff\xff"], [tensor, b"1234"]]


def feed(exchange: Exchange, piece: list[bytes]) -> int:
    """Handle a piece, and return the bytes that were allocated at the peak of it."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    with contextlib.suppress(WireError):
        exchange.handle(piece)
    return tracemalloc.get_traced_memory()[1] - before


def waiting() -> Exchange:
    """An exchange with receives posted and messages to send."""
    exchange = Exchange(max_message_bytes=1 << 40)
    for tag in TAGS:
        exchange.receive(tag, Work("receive", 1))
        exchange.send(pack_message(Message(tag), 0), Work("send", 1))
    return exchange


def test_mutated_pieces_crash_nothing_and_allocate_nothing_they_claim() -> None:
    handled = accepted = 0

    @settings(max_examples=max(1, FRAMES // PIECES), deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(st.lists(mutated(), min_size=PIECES, max_size=PIECES))
    def run(pieces: list[list[bytes]]) -> None:
        nonlocal handled, accepted
        exchange = waiting()
        for piece in pieces:
            handled += 1
            size = sum(map(len, piece))
            assert feed(exchange, piece) < 100_000 + 4000 * size
            for read in (Identity(0, 2, {"model": "abc"}).judge, lambda frames: check_answer(0, frames)):
                try:
                    read(piece)
                    accepted += 1
                except (WireError, Refused):
                    pass
        exchange.lose(PeerLost(1, "the end"))

    tracemalloc.start()
    try:
        run()
    finally:
        tracemalloc.stop()
    assert handled >= FRAMES
    assert accepted > 0, "some pieces must get through, or nothing behind the first check was tried"


@pytest.mark.parametrize("piece", claims(1 << 39), ids=range(6))
def test_a_head_that_claims_a_lot_allocates_little(piece: list[bytes]) -> None:
    tracemalloc.start()
    try:
        assert feed(waiting(), piece) < 9 << 20
    finally:
        tracemalloc.stop()


def test_every_good_piece_is_accepted() -> None:
    exchange = waiting()
    work: Work[Message] = Work("receive", 1)
    exchange = Exchange(1 << 30)
    exchange.receive(TAGS[0], work)
    (piece,) = [p for p in GOOD if p[0].startswith(b"\x95\x02\x01")]
    assert exchange.handle(piece) is Kind.DATA
    assert work.wait().tensors["x"].tolist() == [0, 1, 2, 3, 4]
