"""What transports carry: tagged messages, and the handle of one that is under way."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from pac_core.errors import PacError, TransportTimeout

T = TypeVar("T")


class Tag(NamedTuple):
    """What a message is for. A receive gets the messages of exactly its tag, so it may be posted long before.

    Attributes:
        direction: ``"forward"``, ``"backward"``, or any other word of at most 64 characters, such as ``"entries"``;
            words that begin with ``@`` belong to the collectives.
        stage: of the pipeline; what the number means is up to sender and receiver. From 0 to 2**31 - 1, like the next.
        micro_batch: number of the micro-batch.
    """

    direction: str
    stage: int = 0
    micro_batch: int = 0

    def __str__(self) -> str:
        return f"{self.direction}/{self.stage}/{self.micro_batch}"


@dataclass(frozen=True)
class Message:
    """A tag, a little plain data, and tensors.

    Attributes:
        tag: see `Tag`.
        header: None, booleans, integers of 64 bits, floats, strings, bytes, lists, and dictionaries with string keys;
            at most 1 MiB packed, and at most 1,024 members in a list or dictionary. What is larger is a tensor.
        tensors: by name (at most 256 characters), in order, at most 1,024. Any shape, empty and non-contiguous ones
            too, of float32, float64, float16, bfloat16, int8, int16, int32, int64, uint8 or bool; in all at most
            `TransportOptions.max_message_bytes`. Where they were on an accelerator, they arrive in main memory.
    """

    tag: Tag
    header: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class Work(Generic[T]):
    """A send or receive under way. Users call `wait` and `done`; transports call `finish` or `fail`, once.

    Args:
        what: for errors, as in ``"receive forward/1/3 from device 0"``.
        timeout: seconds that `wait` waits unless told otherwise.
    """

    def __init__(self, what: str, timeout: float) -> None:
        self.what = what
        self._timeout = timeout
        self._ended = threading.Event()
        self._value: T | None = None
        self._error: PacError | None = None

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> T:
        """The received message; None for a send, whose tensors may be changed from now on.

        Args:
            timeout: seconds; None for the transport's own.

        Raises:
            PeerLost: the peer is gone.
            TransportTimeout: not ended yet; it goes on, and may be waited for again.
            TransportError: the transport was closed meanwhile.
        """
        seconds = self._timeout if timeout is None else timeout
        if not self._ended.wait(seconds):
            raise TransportTimeout(f"{self.what} did not end in {seconds:g} seconds")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # finish() was given a T

    def finish(self, value: T) -> None:
        """End the work with its result."""
        self._value = value
        self._ended.set()

    def fail(self, error: PacError) -> None:
        """End the work with an error, which every `wait` raises."""
        self._error = error
        self._ended.set()
