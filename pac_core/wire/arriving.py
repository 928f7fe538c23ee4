"""Messages on their way in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pac_core.contracts.message import Message
from pac_core.wire.heads import DIMENSIONS, DTYPES, MEMBERS, NAME_CHARACTERS, Buffer, WireError, read_tag, take


@dataclass(frozen=True)
class Spec:
    """A tensor as its message announces it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class Incoming:
    """A message that is arriving.

    Args:
        fields: those of its `Kind.DATA` head after the number.
        max_bytes: most bytes of tensors.

    Raises:
        WireError: the head is not sound, or announces more.
    """

    def __init__(self, fields: Sequence[Any], max_bytes: int) -> None:
        tag, self._header, specs = take(fields, list, dict, list)
        self.tag = read_tag(tag)
        if len(specs) > MEMBERS or any(type(name) is not str for name in self._header):
            raise WireError("a message has too many tensors, or a header whose keys are not strings")
        self._specs = [_read_spec(spec) for spec in specs]
        if len({spec.name for spec in self._specs}) < len(self._specs):
            raise WireError("two tensors of a message have one name")
        self.announced = sum(spec.nbytes for spec in self._specs)
        if self.announced > max_bytes:
            raise WireError(f"a message of {self.announced:,} bytes is announced; {max_bytes:,} is the most")
        self._memory: list[bytearray] = []
        self._arrived = 0

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self._arrived == self.announced

    def add(self, frames: Sequence[Buffer]) -> None:
        """Take the frames after a head.

        Raises:
            WireError: they do not fit what was announced.
        """
        for frame in frames:
            view = memoryview(frame)
            while self._room() == 0:
                if len(self._memory) == len(self._specs):
                    raise WireError("more arrives than was announced")
                self._memory.append(bytearray())
            if not 0 < view.nbytes <= self._room():
                raise WireError("a frame is empty, or crosses from one tensor into the next")
            self._memory[-1] += view
            self._arrived += view.nbytes

    def _room(self) -> int:
        """Bytes that the tensor being filled still takes."""
        if not self._memory:
            return 0
        return self._specs[len(self._memory) - 1].nbytes - len(self._memory[-1])

    def message(self) -> Message:
        """The message, once it is complete; the tensors are its memory as it arrived."""
        memory = self._memory + [bytearray()] * (len(self._specs) - len(self._memory))
        tensors = {spec.name: _tensor(spec, data) for spec, data in zip(self._specs, memory)}
        return Message(self.tag, self._header, tensors)


def _read_spec(fields: Any) -> Spec:
    if type(fields) is not list:
        raise WireError("a tensor is not announced by a list")
    name, dtype, shape = take(fields, str, str, list)
    if len(name) > NAME_CHARACTERS or dtype not in DTYPES or len(shape) > DIMENSIONS:
        raise WireError("a tensor's name, number type or shape is not sound")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(max(1, n) for n in shape) >= 2**56:
        raise WireError("a tensor's shape is out of bounds")
    return Spec(name, DTYPES[dtype], tuple(shape))


def _tensor(spec: Spec, data: bytearray) -> torch.Tensor:
    if not data:
        return torch.empty(spec.shape, dtype=spec.dtype)
    return torch.frombuffer(data, dtype=spec.dtype).view(spec.shape)
