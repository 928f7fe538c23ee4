"""What a transport must do when peers die, fall silent, leave or disagree, and what it must leave behind: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.contracts.message import Message, Work
from pac_core.contracts.transport import Transport, TransportOptions
from pac_core.errors import PeerLost, Refused, TransportError, TransportTimeout
from pac_core.testing.transport_crew import run_each
from pac_core.testing.transport_values import MIB, numbered, tag


class FailureTests:
    """The part of `pac_core.testing.TransportSuite` about failures and the end."""

    @abstractmethod
    def make_options(self, tmp_path: Path, size: int, **changes: Any) -> list[TransportOptions]:
        """See `pac_core.testing.TransportSuite.make_options`."""

    @abstractmethod
    def make_transport(self, options: TransportOptions) -> Transport:
        """See `pac_core.testing.TransportSuite.make_transport`."""

    def run(
        self, tmp_path: Path, size: int, body: Callable[[Transport], Any], dying: tuple[int, ...] = (), **changes: Any
    ) -> list[Any]:
        """See `pac_core.testing.TransportSuite.run`."""
        raise NotImplementedError

    # time-outs

    def test_a_wait_that_timed_out_can_be_taken_up_again(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 0:
                t.irecv(1, tag(5)).wait()
                t.isend(1, numbered(7)).wait()
            else:
                work = t.irecv(0, tag())
                begun = time.monotonic()
                with pytest.raises(TransportTimeout, match="receive forward/1/0 from device 0"):
                    work.wait(0.3)
                assert time.monotonic() - begun >= 0.29
                assert not work.done()
                t.isend(0, numbered(0, micro_batch=5))
                assert work.wait().header["n"] == 7
                assert work.done()

        self.run(tmp_path, 2, body)

    # lost peers

    def test_a_peer_that_dies_in_the_middle_of_a_message_is_lost(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 1:
                t.irecv(0, tag(3)).wait()
                t.isend(0, numbered(1, micro_batch=2))
                sending = t.isend(0, Message(tag(), {}, {"x": torch.zeros(2048 * MIB, dtype=torch.int8)}))
                time.sleep(0.02)
                assert not sending.done()
                os.kill(os.getpid(), signal.SIGKILL)
            if t.rank == 0:
                receive, other, send = t.irecv(1, tag()), t.irecv(1, tag(9)), t.isend(1, numbered(0, micro_batch=8))
                t.isend(1, numbered(0, micro_batch=3))
                works: list[Work[Any]] = [receive, other, send]
                for work in works:
                    with pytest.raises(PeerLost, match="lost device 1") as caught:
                        work.wait()
                    assert caught.value.rank == 1
                for attempt in (lambda: t.isend(1, numbered(0)), lambda: t.irecv(1, tag())):
                    with pytest.raises(PeerLost):
                        attempt()
                assert list(t.lost()) == [1]
                t.isend(2, numbered(5)).wait()
            if t.rank == 2:
                with pytest.raises(PeerLost):
                    t.irecv(1, tag()).wait()
                assert t.irecv(0, tag()).wait().header["n"] == 5

        self.run(tmp_path, 3, body, dying=(1,), send_ahead_bytes=4096 * MIB)

    def test_a_send_blocked_by_a_full_queue_learns_that_its_peer_died(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 1:
                t.irecv(0, tag(1)).wait()
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGKILL)
            t.isend(1, numbered(0, micro_batch=1))
            t.isend(1, numbered(1, MIB))
            with pytest.raises(PeerLost):
                t.isend(1, numbered(2, MIB))

        self.run(tmp_path, 2, body, dying=(1,), send_ahead_bytes=MIB)

    def test_a_peer_that_falls_silent_is_lost(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 1:
                t.irecv(0, tag()).wait()
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                t.isend(1, numbered(0)).wait()
                with pytest.raises(PeerLost):
                    t.irecv(1, tag()).wait()

        self.run(tmp_path, 2, body, dying=(1,), silence=2.0, timeout=100)

    def test_a_peer_that_only_computes_is_not_lost(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            t.barrier()
            if t.rank == 1:
                time.sleep(6)
                t.isend(0, numbered(0)).wait()
            else:
                t.irecv(1, tag()).wait()
            assert not t.lost()
            t.barrier()  # a peer that has closed counts as lost

        self.run(tmp_path, 2, body, silence=4.0)

    def test_a_machine_that_sleeps_loses_nobody(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            t.barrier()
            pid = os.getpid()
            waker = subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {pid}"])
            os.kill(pid, signal.SIGSTOP)  # all devices at once
            waker.wait()
            time.sleep(0.5)
            if t.rank == 0:
                assert t.irecv(1, tag()).wait().header["n"] == 3
                assert not t.lost()
            else:
                t.isend(0, numbered(3)).wait()
            t.barrier()

        self.run(tmp_path, 2, body, silence=2.5)

    def test_a_collective_without_one_of_its_members_is_an_error(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            t.barrier()
            if t.rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            with pytest.raises((PeerLost, TransportTimeout)):
                t.all_reduce(torch.ones(100), timeout=15)

        self.run(tmp_path, 3, body, dying=(2,))

    def test_a_message_larger_than_the_receiver_takes_cuts_the_sender_off(self, tmp_path: Path) -> None:
        smaller = self.make_options(tmp_path, 2)
        options = [replace(smaller[0], max_message_bytes=MIB), smaller[1]]

        def work(own: TransportOptions) -> None:
            with self.make_transport(own) as t:
                if t.rank == 1:
                    t.isend(0, numbered(0, MIB))
                    with pytest.raises(PeerLost):
                        t.irecv(0, tag()).wait()
                else:
                    with pytest.raises(PeerLost, match="protocol"):
                        t.irecv(1, tag()).wait()

        for report in run_each(work, options):
            assert report.code == 0, report.failure

    # connecting

    def test_devices_that_disagree_are_told_on_what(self, tmp_path: Path) -> None:
        alike = self.make_options(tmp_path, 2, timeout=40)
        terms = [{"pac": "1.0", "model": "abc"}, {"pac": "1.0", "model": "xyz"}]

        def work(own: TransportOptions) -> str:
            with pytest.raises(Refused) as caught:
                self.make_transport(own)
            return str(caught.value)

        for report in run_each(work, [replace(o, terms=x) for o, x in zip(alike, terms)]):
            assert report.code == 0, report.failure
            assert "model" in report.value
            assert "abc" in report.value
            assert "xyz" in report.value

    def test_a_device_that_does_not_come_is_a_time_out(self, tmp_path: Path) -> None:
        options = self.make_options(tmp_path, 3, timeout=2.0)

        def work(own: TransportOptions) -> None:
            with pytest.raises(TransportTimeout):
                self.make_transport(own)

        for report in run_each(work, options[:2]):
            assert report.code == 0, report.failure

    # closing

    def test_what_was_sent_before_closing_arrives(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 0:
                for n in range(5):
                    t.isend(1, numbered(n, MIB, micro_batch=n)).wait()
                t.close()
            else:
                works = [t.irecv(0, tag(n)) for n in range(5)]
                never = t.irecv(0, tag(99))
                for n, work in enumerate(works):
                    assert bool((work.wait().tensors["x"] == n).all())
                with pytest.raises(PeerLost, match="closed"):
                    never.wait()

        self.run(tmp_path, 2, body)

    def test_closing_ends_what_is_under_way(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            works: list[Work[Any]] = [t.irecv(1 - t.rank, tag()), t.isend(1 - t.rank, numbered(0, micro_batch=1))]
            t.barrier()
            if t.rank == 1:
                with pytest.raises(PeerLost):
                    works[0].wait()
            t.close()
            t.close()
            for work in works:
                with pytest.raises(TransportError):
                    work.wait(20)
            for attempt in (lambda: t.isend(1 - t.rank, numbered(0)), lambda: t.irecv(1 - t.rank, tag())):
                with pytest.raises((TransportError), match=r"closed|lost"):
                    attempt()

        self.run(tmp_path, 2, body)

    def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        jobs = [self.make_options(tmp_path, 2) for _ in range(4)]

        def work(first: TransportOptions) -> None:
            counts = []
            for job in jobs:
                own = next(options for options in job if options.rank == first.rank)
                with self.make_transport(own) as t:
                    t.isend(1 - t.rank, numbered(1, MIB))
                    t.irecv(1 - t.rank, tag()).wait()
                    t.all_reduce(torch.ones(10))
                time.sleep(0.2)  # threads that have returned may take a moment to be gone
                counts.append((threading.active_count(), len(os.listdir("/dev/fd"))))
            _, (threads, descriptors), *_, (threads_last, descriptors_last) = counts
            assert threads_last <= threads
            assert descriptors_last <= descriptors

        files = sorted(tmp_path.rglob("*"))
        for report in run_each(work, jobs[0]):
            assert report.code == 0, report.failure
        assert sorted(tmp_path.rglob("*")) == files
