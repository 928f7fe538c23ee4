"""What a transport must do while threads compute: run ahead, hold senders up, serve several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Transport
from pac_core.errors import TransportTimeout
from pac_core.malloc import return_large_blocks
from pac_core.testing.transport_values import MIB, numbered, peak_bytes, tag


class FlowTests:
    """The part of `pac_core.testing.TransportSuite` about what is under way at once."""

    def run(
        self, tmp_path: Path, size: int, body: Callable[[Transport], Any], dying: tuple[int, ...] = (), **changes: Any
    ) -> list[Any]:
        """See `pac_core.testing.TransportSuite.run`."""
        raise NotImplementedError

    def test_sends_and_receives_return_at_once(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            t.barrier()
            if t.rank == 0:
                begun = time.monotonic()
                works = [t.isend(1, numbered(n, MIB)) for n in range(16)]
                assert not any(work.done() for work in works)
                assert time.monotonic() - begun < 30, "it waited for the receiver, who sleeps"
                t.isend(1, numbered(0, micro_batch=1))
                for work in works:
                    work.wait()
            else:
                assert t.irecv(0, tag(1)).wait().header["n"] == 0, "comes after all 16 were begun"
                for n in range(16):
                    assert t.irecv(0, tag()).wait().header["n"] == n

        self.run(tmp_path, 2, body)

    def test_a_slow_receiver_holds_the_sender_up(self, tmp_path: Path) -> None:
        count, room = 60, 16 * MIB

        def body(t: Transport) -> int:
            return_large_blocks()  # else what glibc keeps for later varies by far more than what is held
            t.barrier()
            before = peak_bytes()
            if t.rank == 0:
                for n in range(count):
                    t.isend(1, numbered(n, MIB))  # 4 MiB, held by nobody but the transport
            else:
                for n in range(count):
                    time.sleep(0.02)
                    assert t.irecv(0, tag()).wait().header["n"] == n
            grown = peak_bytes() - before
            t.barrier()
            return grown

        for grown in self.run(tmp_path, 2, body, send_ahead_bytes=room):
            assert grown < room + 64 * MIB, f"memory grew by {grown / MIB:.0f} MiB of the {count * 4} sent"

    def test_a_receiver_that_never_asks_is_a_time_out_of_the_sender(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 0:
                works = [t.isend(1, numbered(n, MIB)) for n in range(4)]
                with pytest.raises(TransportTimeout, match="send_ahead_bytes"):
                    t.isend(1, numbered(9, MIB), timeout=0.3)
                t.isend(1, numbered(4, 0))  # what takes no room still goes
                t.barrier()
                for work in works:
                    work.wait()
            else:
                t.barrier()
                assert [t.irecv(0, tag()).wait().header["n"] for _ in range(5)] == [0, 1, 2, 3, 4]
            t.barrier()

        self.run(tmp_path, 2, body, send_ahead_bytes=16 * MIB)

    def test_threads_of_all_devices_may_talk_at_once(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            failures: list[str] = []

            def talk(peer: int, thread: int) -> None:
                direction = f"thread {thread}"
                works = [t.irecv(peer, Tag(direction)) for _ in range(30)]
                for n in range(30):
                    tensors = {"x": torch.full((n * 2000,), n)}
                    t.isend(peer, Message(Tag(direction), {"n": n, "from": t.rank}, tensors))
                for n, work in enumerate(works):
                    message = work.wait()
                    if message.header != {"n": n, "from": peer} or not bool((message.tensors["x"] == n).all()):
                        failures.append(f"{n} of {direction} from {peer}: {message.header}")

            threads = [
                threading.Thread(target=talk, args=(peer, k)) for peer in range(3) if peer != t.rank for k in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures
            t.barrier()

        self.run(tmp_path, 3, body)
