"""Devices agree on a part of a store that an earlier start of the job has left full of its own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from pac_core.errors import TransportTimeout
from pac_plugins.transports.torch_store import fresh_store


def started(store: dist.Store, size: int) -> list[str]:
    """What each device of a start reads from the part, into which the first one has written."""

    def device(rank: int) -> str:
        part = fresh_store(store, rank, size, 20.0)
        if rank == 0:
            part.set("address", str(id(part)))
        return str(part.get("address").decode())

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(device, range(size)))


def test_each_start_has_a_part_of_its_own() -> None:
    store = dist.HashStore()
    first, second = started(store, 3), started(store, 3)
    assert len(set(first)) == len(set(second)) == 1


def test_a_start_that_came_to_nothing_does_not_mislead_the_next() -> None:
    store = dist.HashStore()
    with pytest.raises(TransportTimeout):
        fresh_store(store, 1, 3, 0.1)  # it has asked, and is gone
    with pytest.raises(TransportTimeout):
        fresh_store(store, 0, 3, 0.1)  # it has answered that one
    assert len(set(started(store, 3))) == 1


def test_one_device_waits_for_nobody() -> None:
    assert fresh_store(dist.HashStore(), 0, 1, 0.0)
