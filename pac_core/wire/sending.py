"""Messages on their way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import torch

from pac_core.contracts.message import Message, Tag
from pac_core.errors import BadInput
from pac_core.wire.heads import (
    DIMENSIONS,
    DTYPES,
    HEADER_BYTES,
    MEMBERS,
    NAME_CHARACTERS,
    PIECE_BYTES,
    PIECE_FRAMES,
    Buffer,
    Kind,
    WireError,
    check_tag,
    pack_head,
    unpack,
)

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Packed:
    """A message ready to be sent: the packed fields of its head after the number, and the tensors' memory."""

    tag: Tag
    header: Mapping[str, Any]
    specs: Sequence[Sequence[Any]]
    buffers: Sequence[memoryview]
    nbytes: int

    def pieces(self, number: int) -> Iterator[list[Buffer]]:
        """Lists of frames, in the order to be sent in; the memory of tensors is referred to, not copied."""
        frames: list[Buffer] = [pack_head(Kind.DATA, number, self.tag, self.header, self.specs)]
        room = PIECE_BYTES
        for buffer in self.buffers:
            at = 0
            while at < buffer.nbytes:
                if not room or len(frames) == PIECE_FRAMES:
                    yield frames
                    frames, room = [pack_head(Kind.MORE, number)], PIECE_BYTES
                part = buffer[at : at + room]
                frames.append(part)
                at, room = at + part.nbytes, room - part.nbytes
        yield frames


def pack_message(message: Message, max_bytes: int) -> Packed:
    """Check a message and find its memory.

    Raises:
        BadInput: it is not what `Message` allows, or its tensors take more than ``max_bytes``.
    """
    check_tag(message.tag)
    _check_header(message)
    if len(message.tensors) > MEMBERS:
        raise BadInput(f"message {message.tag} has {len(message.tensors)} tensors; {MEMBERS} is the most")
    specs = [_spec_of(message.tag, name, tensor) for name, tensor in message.tensors.items()]
    nbytes = message.nbytes()
    if nbytes > max_bytes:
        raise BadInput(f"message {message.tag} has {nbytes:,} bytes of tensors; {max_bytes:,} is the most")
    buffers = [_memory(tensor) for tensor in message.tensors.values()]
    return Packed(message.tag, message.header, specs, buffers, nbytes)


def _check_header(message: Message) -> None:
    try:
        packed = msgpack.packb(dict(message.header))
        unpack(packed)  # what the receiver could not read is to be refused here
    except (TypeError, ValueError, OverflowError, WireError) as error:
        raise BadInput(f"the header of message {message.tag} cannot be sent: {error}; see Message.header") from error
    if len(packed) > HEADER_BYTES:
        raise BadInput(f"the header of message {message.tag} takes {len(packed):,} bytes; {HEADER_BYTES:,} is the most")


def _spec_of(tag: Tag, name: str, tensor: torch.Tensor) -> list[Any]:
    dtype = _NAMES.get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided:
        raise BadInput(f"tensor '{name}' of message {tag} is {tensor.dtype}, {tensor.layout}, which cannot be sent")
    if len(name) > NAME_CHARACTERS or tensor.dim() > DIMENSIONS:
        raise BadInput(f"tensor '{name[:20]}...' of message {tag} has too long a name or too many dimensions")
    return [name, dtype, list(tensor.shape)]


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, its own where it is contiguous in main memory."""
    flat = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().view(-1)
    return flat.view(torch.uint8).numpy().data
