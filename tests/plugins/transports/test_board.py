"""Collectives through shared memory; what every transport's collectives do is in the public suite."""

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.errors import BadInput, PeerLost, TransportError, TransportTimeout
from pac_core.testing.transport_crew import run_crew, run_each
from pac_plugins.transports import board as module
from pac_plugins.transports import make_local
from pac_plugins.transports.board import Board, new_memory

SUMMED = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8)
TAG = Tag("forward")
MOVED = (*SUMMED, torch.bool, torch.int16)


@contextlib.contextmanager
def boards(size: int) -> Iterator[list[Board]]:
    """Boards of as many devices, for threads of this process."""
    bells: list[dict[int, socket.socket]] = [{} for _ in range(size)]
    for a, b in itertools.combinations(range(size), 2):
        bells[a][b], bells[b][a] = socket.socketpair()
    memory = new_memory(size)
    made = [Board(rank, os.dup(memory), bells[rank], lambda peer: None) for rank in range(size)]
    os.close(memory)
    try:
        yield made
    finally:
        for board in made:
            board.close()


def each(made: list[Board], work: Callable[[int, Board], Any]) -> list[Any]:
    """What ``work`` returns on each board, all at once."""
    with ThreadPoolExecutor(len(made)) as pool:
        return list(pool.map(work, range(len(made)), made))


def soon() -> float:
    return time.monotonic() + 30


def numbers(rank: int, dtype: torch.dtype, count: int) -> torch.Tensor:
    """Numbers (count) that every rank has its own of."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(rank)) * 20
    return drawn > 0 if dtype is torch.bool else drawn.abs().to(dtype)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few numbers are many pieces, some of which are summed by shares."""
    monkeypatch.setattr(module, "_SLOT", 256)
    monkeypatch.setattr(module, "_FEW_BYTES", 64)


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 5),
    calls=st.lists(
        st.tuples(
            st.sampled_from(["all_reduce", "broadcast", "gather", "barrier"]),
            st.sampled_from(MOVED),
            st.integers(0, 400),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_any_calls_in_any_order_give_what_one_device_would_compute(
    size: int, calls: list[tuple[str, torch.dtype, int, int]]
) -> None:
    def work(rank: int, board: Board) -> None:
        for name, dtype, count, root in calls:
            given = [numbers(peer, dtype, count) for peer in range(size)]
            own, root = given[rank].clone(), root % size
            if name == "barrier":
                board.barrier(soon())
            elif name == "gather":
                found = board.gather(own, root, soon())
                assert (found is None) == (rank != root)
                assert all(torch.equal(a, b) for a, b in zip(found or (), given, strict=False))
            elif name == "broadcast":
                board.broadcast(own, root, soon())
                assert torch.equal(own, given[root])
            elif dtype in SUMMED:
                board.all_reduce(own, soon())
                expected = given[0].clone()
                for other in given[1:]:
                    expected += other
                assert own.dtype == dtype
                assert torch.equal(own, expected), "added by rank, so to the last bit"

    with boards(size) as made:
        each(made, work)


@pytest.mark.parametrize("size", [2, 3])
def test_a_tensor_of_many_pieces_is_summed(size: int) -> None:
    count = 2 * module._SLOT // 4 + 5

    def work(rank: int, board: Board) -> None:
        tensor = torch.arange(count, dtype=torch.float32).remainder_(1000).add_(rank)
        board.all_reduce(tensor, soon())
        expected = torch.arange(count, dtype=torch.float32).remainder_(1000).mul_(size).add_(sum(range(size)))
        assert torch.equal(tensor, expected)

    with boards(size) as made:
        each(made, work)


def test_devices_that_call_different_collectives_are_told_so() -> None:
    def work(rank: int, board: Board) -> None:
        with pytest.raises(BadInput, match="different"):
            board.all_reduce(torch.ones(3 + rank), soon())
        with pytest.raises(TransportError, match="failed before"):
            board.barrier(soon())

    with boards(2) as made:
        each(made, work)


def test_a_collective_that_timed_out_is_the_last() -> None:
    with boards(2) as made:
        begun = time.monotonic()
        with pytest.raises(TransportTimeout, match="device 1 did not come"):
            made[0].barrier(begun + 0.3)
        assert 0.3 <= time.monotonic() - begun < 10
        with pytest.raises(TransportError, match="failed before"):
            made[0].barrier(soon())


# with a transport around it


def local(folder: Path, size: int, **changes: Any) -> list[TransportOptions]:
    peers = [Peer(str(folder / str(rank))) for rank in range(size)]
    return [TransportOptions(rank=rank, peers=peers, **changes) for rank in range(size)]


def test_a_peer_killed_between_its_collectives_is_lost_to_all_at_once(tmp_path: Path) -> None:
    def body(t: Transport) -> None:
        tensor = torch.ones(2_000_000)
        for _ in range(5):
            t.all_reduce(tensor)
        if t.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(PeerLost, match="lost device 1"):
            t.all_reduce(tensor)
        assert time.monotonic() - begun < 20

    run_crew(make_local, local(tmp_path, 3), body, dying=(1,))


def test_a_peer_killed_while_it_sums_is_lost(tmp_path: Path) -> None:
    def body(t: Transport) -> None:
        def reduce() -> None:
            while True:
                t.all_reduce(tensor)

        tensor = torch.zeros(20_000_000)
        t.barrier()
        if t.rank == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        with pytest.raises(PeerLost, match="lost device 1"):
            reduce()
        assert 1 in t.lost()

    run_crew(make_local, local(tmp_path, 3), body, dying=(1,))


def test_a_peer_that_falls_silent_is_lost_to_a_collective(tmp_path: Path) -> None:
    def body(t: Transport) -> None:
        t.barrier()
        if t.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(PeerLost, match="nothing was heard"):
            t.barrier()

    run_crew(make_local, local(tmp_path, 2, silence=2.0), body, dying=(1,))


def test_closing_ends_a_collective_under_way(tmp_path: Path) -> None:
    def body(t: Transport) -> None:
        t.barrier()
        if t.rank == 1:
            t.irecv(0, TAG).wait()  # it never comes to the second
            return
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                t.all_reduce(torch.ones(5))
            except TransportError as error:
                failed.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        begun = time.monotonic()
        t.isend(1, Message(TAG)).wait()
        t.close()
        thread.join()
        assert time.monotonic() - begun < 10
        assert len(failed) == 1
        with pytest.raises(TransportError, match="closed"):
            t.barrier()

    run_crew(make_local, local(tmp_path, 2), body)


def test_who_is_done_may_close_while_others_are_still_at_the_last_collective(tmp_path: Path) -> None:
    def body(t: Transport) -> None:
        for n in range(20):
            tensor = torch.full((300_000,), float(n))
            t.all_reduce(tensor)
            assert bool((tensor == 3 * n).all())

    for _ in range(5):
        run_crew(make_local, local(tmp_path, 3), body)


def test_nothing_is_left_when_all_are_killed(tmp_path: Path) -> None:
    folders = [folder for folder in (Path("/dev/shm"), tmp_path) if folder.exists()]
    before = [sorted(folder.rglob("*")) for folder in folders]

    def work(own: TransportOptions) -> None:
        transport = make_local(own)
        transport.all_reduce(torch.ones(1000))
        os.kill(os.getpid(), signal.SIGKILL)

    for report in run_each(work, local(tmp_path, 2)):
        assert report.code == -signal.SIGKILL, report.failure
    assert [sorted(folder.rglob("*")) for folder in folders] == before
