"""Sends meet posted receives, and a peer that does not keep to the protocol is found out."""

import pytest
import torch

from pac_core.contracts.message import Message, Tag, Work
from pac_core.errors import PeerLost
from pac_core.wire import PIECE_BYTES, Kind, WireError, pack_head, pack_message
from pac_plugins.transports.exchange import Exchange

TAG = Tag("forward", 1, 2)


def message(size: int = 3, tag: Tag = TAG) -> Message:
    return Message(tag, {}, {"x": torch.arange(float(size))})


def posted(max_bytes: int = 1 << 30) -> tuple[Exchange, Work[Message]]:
    exchange, work = Exchange(max_bytes), Work[Message]("receive", 1)
    exchange.receive(TAG, work)
    return exchange, work


def carry(source: Exchange, sink: Exchange) -> list[list[bytes]]:
    """Carry all pieces over; returns them."""
    pieces = []
    while (piece := source.peek()) is not None:
        source.sent(piece)
        pieces.append([bytes(frame) for frame in piece.frames])
        sink.handle(pieces[-1])
    return pieces


def test_nothing_is_sent_before_its_receive_is_posted() -> None:
    sender, sent = Exchange(1 << 30), Work[None]("send", 1)
    sender.send(pack_message(message(), 1 << 30), sent)
    assert sender.peek() is None
    receiver, work = posted()
    carry(receiver, sender)
    carry(sender, receiver)
    assert work.wait().tensors["x"].tolist() == [0, 1, 2]


def test_a_large_message_goes_in_pieces_of_bounded_size() -> None:
    receiver, work = posted()
    sender = Exchange(1 << 30)
    sender.send(pack_message(message(PIECE_BYTES), 1 << 30), Work("send", 1))
    carry(receiver, sender)
    pieces = carry(sender, receiver)
    assert len(pieces) == 4
    assert all(sum(map(len, piece[1:])) <= PIECE_BYTES for piece in pieces)
    assert torch.equal(work.wait().tensors["x"], torch.arange(float(PIECE_BYTES)))


def data(number: int, size: int = 3, tag: Tag = TAG) -> list[bytes]:
    (piece,) = pack_message(message(size, tag), 1 << 30).pieces(number)
    return [bytes(frame) for frame in piece]


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([[]], "without a head"),
        ([data(7)], "not asked for"),
        ([[pack_head(Kind.MORE, 1), b"abcd"]], "not asked for"),
        ([data(1), data(1)], "not asked for"),
        ([data(1, tag=Tag("backward", 1, 2))], "asked for"),
        ([[*data(1), b"more"]], "more arrives"),
        ([[*data(1)[:1], b""]], "empty"),
        ([[*data(1)[:1], b"x" * 13]], "crosses"),
        ([data(1, size=100_000)], "is announced"),
        ([[pack_head(Kind.BEAT), b"x"]], "data comes"),
        ([[pack_head(Kind.POST, 1, ["x"])]], "wrong number or type"),
        ([[b"\xc1"]], "cannot be read"),
        ([[pack_head(Kind.BEAT)[:1] + b"\x63"]], "kind 99"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_found_out(pieces: list[list[bytes]], told: str) -> None:
    exchange, _ = posted(max_bytes=1000)
    *before, last = pieces
    for piece in before:
        exchange.handle(piece)
    with pytest.raises(WireError, match=told):
        exchange.handle(last)


@pytest.mark.parametrize(
    "spec",
    [
        ["x", "f32", [-1]],
        ["x", "f32", [2**62, 0]],
        ["x", "f32", [2**31, 2**31]],
        ["x", "f32", [3.0]],
        ["x", "f32", [True]],
        ["x", "f32", ["3"]],
        ["x", "f32", [1] * 65],
        ["x", "f32", None],
        ["x", "c64", [1]],
        ["x" * 257, "f32", [1]],
        [b"x", "f32", [1]],
        ["x", "f32"],
        "x",
    ],
    ids=repr,
)
def test_a_tensor_that_is_announced_wrongly_is_refused(spec: object) -> None:
    exchange, _ = posted()
    with pytest.raises(WireError):
        exchange.handle([pack_head(Kind.DATA, 1, TAG, {}, [spec])])
    exchange, work = posted()
    exchange.handle([pack_head(Kind.DATA, 1, TAG, {}, [["x", "f32", [0, 2]]])])
    assert work.wait().tensors["x"].shape == (0, 2), "what is announced rightly is not"


def test_a_peer_cannot_post_receives_without_end() -> None:
    exchange = Exchange(1000)
    post = [pack_head(Kind.POST, 1, TAG)]
    for _ in range(1 << 16):
        exchange.handle(post)
    with pytest.raises(WireError, match="receives are posted"):
        exchange.handle(post)


def test_a_loss_fails_everything_now_and_later() -> None:
    exchange, receive = posted()
    sends = [Work[None]("send", 1) for _ in range(3)]
    exchange.send(pack_message(message(), 1 << 30), sends[0])
    exchange.handle([pack_head(Kind.POST, 1, TAG)])
    exchange.send(pack_message(message(), 1 << 30), sends[1])
    assert exchange.lose(PeerLost(3, "gone")) == 24
    assert not exchange.send(pack_message(message(), 1 << 30), sends[2])
    for work in (receive, *sends):
        with pytest.raises(PeerLost, match="lost device 3: gone"):
            work.wait()
    assert exchange.peek() is None
