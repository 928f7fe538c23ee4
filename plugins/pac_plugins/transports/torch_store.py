"""Where the processes of torchrun find each other's addresses, apart for each start of a job."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import torch.distributed as dist

from pac_core.errors import TransportTimeout

_POLL = 0.02  # seconds; asking in a loop, rather than waiting in C++, lets Ctrl-C through


def fresh_store(store: dist.Store, rank: int, size: int, seconds: float) -> dist.Store:
    """A part of ``store`` that no earlier start of the job has written to; returns once all devices have it.

    torchrun keeps its store when it starts processes anew, with the addresses of those that are gone. So each device
    asks under a name that nobody had before, which only a living device 0 answers, with the name of the part.

    Raises:
        TransportTimeout: a device did not come.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    if rank == 0:
        _wait(lambda: all(_answered(store, peer, own) for peer in range(1, size)), deadline)
        return dist.PrefixStore(own, store)
    store.set(f"pac asks {rank}", own)
    answer = f"pac answers {own}"
    _wait(lambda: bool(store.check([answer])), deadline)
    part = store.get(answer).decode()
    store.set(f"pac hears {part} {rank}", "")
    return dist.PrefixStore(part, store)


def _answered(store: dist.Store, peer: int, part: str) -> bool:
    """Answer what a peer has asked last; whether it has heard an answer."""
    if store.check([f"pac asks {peer}"]):
        store.set(f"pac answers {store.get(f'pac asks {peer}').decode()}", part)
    return bool(store.check([f"pac hears {part} {peer}"]))


def _wait(done: Callable[[], bool], deadline: float) -> None:
    while not done():
        if time.monotonic() > deadline:
            raise TransportTimeout("not all devices came in time")
        time.sleep(_POLL)
