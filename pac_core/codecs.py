"""How activations become bytes and back: codecs, the entry format, and its checks.

An entry is a 64-byte header, the payload, and an xxh3_64 checksum of both that is seeded with the key. All numbers are
little-endian. Nothing is ever unpickled: an entry is accepted only if its header, its length and its checksum are what
the reader expects, and nothing is allocated on the word of a header that was not checked.
"""

from __future__ import annotations

import struct
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from pac_core.contracts.store import Buffer
from pac_core.errors import BadInput, RunFailed

BLOCK = 64
"""Values along d that share a scale in the int8 codec."""

HEADER = struct.Struct("<4sBBBx8sIII4xQ24x")
MAGIC = b"PACE"
VERSION = 1
SHUFFLED = 1
CHECK_BYTES = 8
PAYLOAD_AT = HEADER.size
"""Bytes before the payload: 64, so that a payload is as aligned as its buffer."""


class Codec(ABC):
    """Turns activations (taps, tokens, d) into a payload of known size and back.

    Attributes:
        name: what users write as cache dtype.
        id: the number in an entry's header.
    """

    name: str
    id: int

    @abstractmethod
    def payload_bytes(self, taps: int, tokens: int, d: int) -> int:
        """Bytes of the payload of an entry of that shape."""

    @abstractmethod
    def encode(self, entry: Tensor, payload: Tensor, shuffle: bool) -> None:
        """Write ``entry`` (taps, tokens, d), any float dtype, into ``payload`` (bytes,) uint8."""

    @abstractmethod
    def decode(self, payload: Tensor, out: Tensor, shuffle: bool) -> None:
        """Write the activations of ``payload`` (bytes,) uint8 into ``out`` (taps, tokens, d), float32 or float64.

        ``out`` may be a view with any stride over taps, but its last two dimensions are contiguous.
        """


class CastCodec(Codec):
    """Values as numbers of one dtype, rounded to nearest even where it is narrower. Exact for values it can hold."""

    def __init__(self, name: str, number: int, dtype: torch.dtype) -> None:
        self.name, self.id, self.dtype = name, number, dtype

    def payload_bytes(self, taps: int, tokens: int, d: int) -> int:
        return taps * tokens * d * self.dtype.itemsize

    def encode(self, entry: Tensor, payload: Tensor, shuffle: bool) -> None:
        if shuffle:
            shuffle_bytes(entry.to(self.dtype).contiguous(), payload)
        else:
            payload.view(self.dtype).view(entry.shape).copy_(entry)

    def decode(self, payload: Tensor, out: Tensor, shuffle: bool) -> None:
        values = unshuffle_bytes(payload, self.dtype) if shuffle else payload.view(self.dtype)
        out.copy_(values.view(out.shape))


class Int8Codec(Codec):
    """Blocks of 64 values along d as int8 with one float32 scale: ``|x - x'| <= max|block| / 254``, up to rounding.

    The payload is the scales (taps, tokens, ceil(d / 64)) followed by the int8 values (taps, tokens, d). There is
    nothing to gain from shuffling it.
    """

    name = "int8"
    id = 4

    def payload_bytes(self, taps: int, tokens: int, d: int) -> int:
        return taps * tokens * (d + 4 * _blocks(d))

    def encode(self, entry: Tensor, payload: Tensor, shuffle: bool) -> None:
        scales, values = self._parts(payload, entry.shape)
        whole = entry.shape[-1] // BLOCK * BLOCK
        for tap in range(entry.shape[0]):  # a tap at a time stays in the processor's cache
            numbers = entry[tap].float().contiguous()
            for part, scale, target in _split(numbers, scales[tap], values[tap], whole):
                torch.amax(part.abs(), -1, out=scale)
                scale.div_(127)
                target.copy_((part / scale.clamp_min(_TINY).unsqueeze(-1)).round_())
        if not torch.isfinite(scales).all():
            raise RunFailed("the activations hold inf or nan, which int8 entries cannot; use cache dtype float32")

    def decode(self, payload: Tensor, out: Tensor, shuffle: bool) -> None:
        scales, values = self._parts(payload, out.shape)
        whole = out.shape[-1] // BLOCK * BLOCK
        for tap in range(out.shape[0]):
            out[tap].copy_(values[tap])
            for part, scale, _ in _split(out[tap], scales[tap], values[tap], whole):
                part.mul_(scale.unsqueeze(-1))

    def _parts(self, payload: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        taps, tokens, d = shape
        size = taps * tokens * _blocks(d) * 4
        scales = payload[:size].view(torch.float32).view(taps, tokens, _blocks(d))
        return scales, payload[size:].view(torch.int8).view(shape)


_TINY = torch.finfo(torch.float32).tiny


def _blocks(d: int) -> int:
    return -(-d // BLOCK)


def _in_blocks(values: Tensor) -> Tensor:
    """(tokens, blocks, 64) over the same memory as (tokens, blocks * 64), whose last dimension is contiguous."""
    return values.as_strided((values.shape[0], values.shape[1] // BLOCK, BLOCK), (values.stride(0), BLOCK, 1))


def _split(numbers: Tensor, scales: Tensor, values: Tensor, whole: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(numbers, scales, values) of the whole blocks as (tokens, blocks, 64), and of the short last block if any."""
    parts = []
    if whole:
        full = (_in_blocks(numbers[:, :whole]), _in_blocks(values[:, :whole]))
        parts.append((full[0], scales[:, : whole // BLOCK], full[1]))
    if whole < numbers.shape[-1]:
        parts.append((numbers[:, whole:], scales[:, -1], values[:, whole:]))
    return parts


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        CastCodec("float32", 1, torch.float32),
        CastCodec("float64", 2, torch.float64),
        CastCodec("bfloat16", 3, torch.bfloat16),
        Int8Codec(),
    )
}


def codec_for(name: str) -> Codec:
    """The codec of a cache dtype.

    Raises:
        BadInput: no such dtype.
    """
    if name not in CODECS:
        raise BadInput(f"cache dtype '{name}' is not known; choose from {', '.join(sorted(CODECS))}")
    return CODECS[name]


def shuffle_bytes(values: Tensor, planes: Tensor) -> None:
    """Sort the bytes of contiguous ``values`` by significance into ``planes`` (bytes,) uint8: all lowest bytes first.

    Bytes of like significance resemble each other, which is what makes activations compressible.
    """
    size = values.element_size()
    unsigned = values.view(-1).view(torch.uint8).numpy().view(f"<u{size}")
    target = planes.numpy().reshape(size, -1)
    for k in range(size):
        np.right_shift(unsigned, 8 * k, out=target[k], casting="unsafe")  # keeps the low byte


def unshuffle_bytes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """The (n,) values of ``dtype`` whose bytes `shuffle_bytes` sorted into ``planes``."""
    size = dtype.itemsize
    source = planes.numpy().reshape(size, -1)
    whole = source[size - 1].astype(f"<u{size}")
    for k in range(size - 2, -1, -1):
        np.left_shift(whole, 8, out=whole)
        np.bitwise_or(whole, source[k], out=whole)
    return torch.from_numpy(whole.view(np.uint8)).view(dtype)


@dataclass(frozen=True)
class EntryFormat:
    """What every entry of one namespace has in common; packs and checks entries.

    Attributes:
        codec: how values are held.
        namespace: 8 bytes that name backbone, tap set and codec.
        d: width of the activations.
    """

    codec: Codec
    namespace: bytes
    d: int

    def pack(self, key: bytes, entry: Tensor, *, shuffle: bool) -> memoryview:
        """The entry of ``entry`` (taps, tokens, d), ready to be stored under ``key``."""
        taps, tokens, d = entry.shape
        size = self.codec.payload_bytes(taps, tokens, d)
        buffer = torch.empty(PAYLOAD_AT + size + CHECK_BYTES, dtype=torch.uint8)
        raw = memoryview(buffer.numpy().data)
        flags = SHUFFLED if shuffle else 0
        HEADER.pack_into(raw, 0, MAGIC, VERSION, self.codec.id, flags, self.namespace, taps, tokens, d, size)
        self.codec.encode(entry, buffer[PAYLOAD_AT : PAYLOAD_AT + size], shuffle)
        raw[-CHECK_BYTES:] = _checksum(key, raw[:-CHECK_BYTES])
        return raw

    def unpack(self, key: bytes, entry: Buffer, taps: int, tokens: int, out: Tensor) -> bool:
        """Decode ``entry`` into ``out`` (taps, tokens, d); False, with ``out`` untouched, if it is not sound."""
        size = self.codec.payload_bytes(taps, tokens, self.d)
        if len(entry) != PAYLOAD_AT + size + CHECK_BYTES or not intact(key, entry):
            return False
        header = read_header(entry)
        if header is None or header.shape != (taps, tokens, self.d) or header.namespace != self.namespace:
            return False
        if header.codec != self.codec.id:
            return False
        if size:
            self.codec.decode(_as_tensor(entry, size), out, header.shuffled)
        return True


@dataclass(frozen=True)
class EntryHeader:
    """What an entry says of itself: ``shape`` is (taps, tokens, d), ``payload`` its bytes."""

    codec: int
    shuffled: bool
    namespace: bytes
    shape: tuple[int, int, int]
    payload: int


def read_header(entry: Buffer) -> EntryHeader | None:
    """The header of an entry, of which the first 64 bytes suffice; None if it is no entry of this version."""
    if len(entry) < PAYLOAD_AT:
        return None
    magic, version, codec, flags, namespace, taps, tokens, d, payload = HEADER.unpack_from(entry)
    if magic != MAGIC or version != VERSION:
        return None
    return EntryHeader(codec, bool(flags & SHUFFLED), namespace, (taps, tokens, d), payload)


def intact(key: bytes, entry: Buffer) -> bool:
    """Whether the checksum at the end of an entry matches its content and the key it was stored under."""
    view = memoryview(entry)
    return len(view) > PAYLOAD_AT and bytes(view[-CHECK_BYTES:]) == _checksum(key, view[:-CHECK_BYTES])


def _checksum(key: bytes, content: memoryview) -> bytes:
    seed = int.from_bytes(key[:8], "little")
    digest: bytes = xxhash.xxh3_64_digest(content, seed=seed)
    return digest


def _as_tensor(entry: Buffer, size: int) -> Tensor:
    """The payload as a (size,) uint8 tensor over the store's buffer, which is only ever read."""
    return torch.frombuffer(entry, dtype=torch.uint8, count=size, offset=PAYLOAD_AT)


with warnings.catch_warnings():  # torch warns once in a process about read-only buffers; entries are only ever read
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)
