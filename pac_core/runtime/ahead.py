"""Reading ahead: the next batch's taps are fetched and decoded while the current one trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pac_core.contracts.adapter import Taps
from pac_core.examples import Example
from pac_core.taps import Room, TapReader

Read = tuple[Sequence[Example], dict[str, Taps]]


def read_ahead(reader: TapReader, batches: Iterable[Sequence[Example]]) -> Iterator[Read]:
    """Each batch with its taps, in order, with the next batch being read in the background.

    The taps of a batch lie in one of three rooms that are used in turn, so they are valid until the next batch is
    asked for. An exception of the reader is raised where its result would have been yielded.
    """
    rooms = (Room(), Room(), Room())  # in use, waiting, being read
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pac-read") as pool:
        pending: tuple[Sequence[Example], Future[dict[str, Taps]]] | None = None
        for number, batch in enumerate(batches):
            upcoming = (batch, pool.submit(reader.read, batch, rooms[number % len(rooms)]))
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = upcoming
        if pending is not None:
            yield pending[0], pending[1].result()
