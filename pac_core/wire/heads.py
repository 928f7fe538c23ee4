"""Heads: what a piece is, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import msgpack
import torch

from pac_core.contracts.message import Tag
from pac_core.errors import BadInput

PROTOCOL = 1

PIECE_BYTES = 1 << 20  # of tensors: large enough for the speed of memory, small enough to bound what a claim can cost
HEAD_BYTES = 2 << 20
PIECE_FRAMES = 64

HEADER_BYTES = 1 << 20
MEMBERS = 1024
NAME_CHARACTERS = 256
_DIRECTION_CHARACTERS = 64
DIMENSIONS = 64
_NUMBER = 2**31

Buffer = bytes | bytearray | memoryview

DTYPES: Mapping[str, torch.dtype] = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "bool": torch.bool,
}


class Kind(IntEnum):
    """What a piece is; the fields of its head after the kind are in brackets."""

    POST = 1  # [number, tag]: send me the next message of this tag, and call it by this number
    DATA = 2  # [number, tag, header, [[name, dtype, shape], ...]]: the first piece of a message
    MORE = 3  # [number]: a further piece
    BEAT = 4  # []: still there
    BYE = 5  # []: closing
    HELLO = 6  # [protocol, rank, size, terms]: the first piece of a device that connects
    WELCOME = 7  # []: the answer to it
    REFUSE = 8  # [reason]: the other answer


class WireError(Exception):
    """Bytes that no device of this protocol sends."""


def pack_head(kind: Kind, *fields: Any) -> bytes:
    """A head as bytes."""
    return bytes(msgpack.packb([int(kind), *fields]))


def unpack_head(frame: Buffer) -> tuple[Kind, list[Any]]:
    """The kind of a head, and its fields, whose number and types are still to be checked.

    Raises:
        WireError: it is none, or too large.
    """
    if memoryview(frame).nbytes > HEAD_BYTES:
        raise WireError("a head is too large")
    fields = unpack(frame)
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise WireError("a head is not a list that begins with its kind")
    try:
        return Kind(fields[0]), fields[1:]
    except ValueError:
        raise WireError(f"pieces of kind {fields[0]} are not known") from None


def unpack(data: Buffer) -> Any:
    """msgpack, with bounds on what a few bytes can make it allocate: 1,024 members of each of at most 1,024 levels."""
    try:
        return msgpack.unpackb(data, max_array_len=MEMBERS + 8, max_map_len=MEMBERS, ext_hook=_refuse)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"a head cannot be read ({type(error).__name__})") from error


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def take(fields: Sequence[Any], *types: type) -> list[Any]:
    """The fields, if they are of exactly these types.

    Raises:
        WireError: they are not.
    """
    if len(fields) != len(types) or any(type(f) is not t for f, t in zip(fields, types)):
        raise WireError("a head has fields of the wrong number or type")
    return list(fields)


def read_tag(fields: Any) -> Tag:
    """A tag from the three fields that it is sent as.

    Raises:
        WireError: they are no tag.
    """
    if type(fields) is not list:
        raise WireError("a tag is not a list")
    tag = Tag(*take(fields, str, int, int))
    if not _sound(tag):
        raise WireError("a tag is out of bounds")
    return tag


def check_tag(tag: Tag) -> None:
    """Refuse a tag that cannot be sent.

    Raises:
        BadInput: a word too long, or a number out of range.
    """
    if not (isinstance(tag.direction, str) and _sound(tag)):
        raise BadInput(
            f"tag {tag} cannot be sent: a direction has 1 to {_DIRECTION_CHARACTERS} characters, stage and micro-batch "
            f"are from 0 to {_NUMBER - 1}"
        )


def _sound(tag: Tag) -> bool:
    return (
        0 < len(tag.direction) <= _DIRECTION_CHARACTERS
        and 0 <= tag.stage < _NUMBER
        and 0 <= tag.micro_batch < _NUMBER
    )  # fmt: skip
