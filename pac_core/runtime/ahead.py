"""Reading ahead: the next batch's taps are fetched and decoded while the current one trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """``(item, read(item))`` in order, with one ``read`` under way in the background.

    An exception of ``read`` is raised where its result would have been yielded.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pac-read") as pool:
        pending: tuple[T, Future[R]] | None = None
        for item in items:
            upcoming = (item, pool.submit(read, item))
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = upcoming
        if pending is not None:
            yield pending[0], pending[1].result()
