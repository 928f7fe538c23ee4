"""Conformance suite for transports. Needs pytest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import Transport, TransportOptions
from pac_core.errors import BadInput
from pac_core.testing.transport_collectives import CollectiveTests
from pac_core.testing.transport_crew import run_crew
from pac_core.testing.transport_failures import FailureTests
from pac_core.testing.transport_flow import FlowTests
from pac_core.testing.transport_values import DTYPES, MIB, numbered, peak_bytes, same, tag, values


class TransportSuite(FlowTests, CollectiveTests, FailureTests):
    """What every `pac_core.contracts.transport.Transport` must do. Subclass it and say how to make your transport::

        class TestMyTransport(TransportSuite):
            def make_options(self, tmp_path, size, **changes):
                peers = [Peer(f"my://{rank}") for rank in range(size)]
                return [TransportOptions(rank=rank, peers=peers, **changes) for rank in range(size)]

            def make_transport(self, options):
                return MyTransport(options)

    Each device of a test is a forked process.

    Attributes:
        large_bytes: size of the large message; over 1 GiB by default.
    """

    large_bytes = (1 << 30) + 4097

    @abstractmethod
    def make_options(self, tmp_path: Path, size: int, **changes: Any) -> list[TransportOptions]:
        """Options of ``size`` devices, by rank; ``changes`` are further fields of `TransportOptions`.

        Called again it gives options with which another job can start at once.
        """

    @abstractmethod
    def make_transport(self, options: TransportOptions) -> Transport:
        """The transport of one device; called in the device's process."""

    def run(
        self, tmp_path: Path, size: int, body: Callable[[Transport], Any], dying: tuple[int, ...] = (), **changes: Any
    ) -> list[Any]:
        """Run ``body`` on all devices; see `pac_core.testing.transport_crew.run_crew`."""
        return run_crew(self.make_transport, self.make_options(tmp_path, size, **changes), body, dying)

    # messages

    def test_a_device_knows_its_number_and_how_many_there_are(self, tmp_path: Path) -> None:
        def body(t: Transport) -> tuple[int, int, dict[int, str]]:
            lost = dict(t.lost())
            t.barrier()
            return t.rank, t.size, lost

        assert self.run(tmp_path, 3, body) == [(0, 3, {}), (1, 3, {}), (2, 3, {})]

    def test_tensors_of_every_type_and_shape_arrive_bit_for_bit(self, tmp_path: Path) -> None:
        shapes = [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 3, 4), (300_001,)]
        tensors = {f"{dtype} {shape}": values(dtype, *shape) for dtype in DTYPES for shape in shapes}
        tensors["nan"] = torch.tensor([float("nan"), float("-inf"), -0.0]).view(torch.int32).view(torch.float32)
        header = {
            "none": None,
            "yes": True,
            "n": -(2**63),
            "x": 0.1,
            "text": "naïve",
            "raw": b"\0\xff",
            "l": [1, [2, {}]],
        }

        def body(t: Transport) -> None:
            if t.rank == 0:
                t.isend(1, Message(tag(), header, tensors)).wait()
                return
            message = t.irecv(0, tag()).wait()
            assert message.tag == tag()
            assert message.header == header
            assert list(message.tensors) == list(tensors)
            for name, expected in tensors.items():
                got = message.tensors[name]
                assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
                assert got.is_contiguous(), name
                assert got.reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8)), name
                got.zero_()  # it is the receiver's own

        self.run(tmp_path, 2, body)

    def test_views_of_other_tensors_arrive_as_what_they_show(self, tmp_path: Path) -> None:
        base = values(torch.float32, 40, 60)
        views = {
            "transposed": base.T,
            "every other": base[::2, 1::3],
            "slice": base[5:7],
            "expanded": base[:1].expand(9, 60),
            "backwards": base.flip(0),
            "trained": base.clone().requires_grad_(),
        }

        def body(t: Transport) -> None:
            if t.rank == 0:
                t.isend(1, Message(tag(), {}, views)).wait()
                return
            for name, got in t.irecv(0, tag()).wait().tensors.items():
                assert same(got, views[name].detach()), name

        self.run(tmp_path, 2, body)

    def test_a_message_may_be_larger_than_a_gibibyte(self, tmp_path: Path) -> None:
        size = self.large_bytes

        def body(t: Transport) -> None:
            if t.rank == 0:
                large = torch.zeros(size, dtype=torch.int8)
                large[::4099] = 77
                before = peak_bytes()
                t.isend(1, Message(tag(), {}, {"small": torch.ones(3), "large": large})).wait()
                assert peak_bytes() - before < size / 2, "the tensor was copied"
                return
            got = t.irecv(0, tag()).wait().tensors
            assert got["small"].tolist() == [1, 1, 1]
            large = got["large"]
            assert large.numel() == size
            assert bool((large[::4099] == 77).all())
            assert int(large.count_nonzero()) == len(range(0, size, 4099))

        self.run(tmp_path, 2, body, timeout=200)

    # order

    def test_messages_of_one_tag_keep_their_order(self, tmp_path: Path) -> None:
        sizes = [3, 300_000, 1, 0, 1_000_000, 2] * 5

        def body(t: Transport) -> None:
            if t.rank == 0:
                for n, size in enumerate(sizes):
                    t.isend(1, numbered(n, size))
            else:
                works = [t.irecv(0, tag()) for _ in sizes]
                for n, size in enumerate(sizes):
                    message = works[n].wait()
                    assert (message.header["n"], message.tensors["x"].numel()) == (n, size)
                    assert bool((message.tensors["x"] == n).all())
            t.barrier()

        self.run(tmp_path, 2, body)

    def test_receives_may_be_posted_ahead_and_in_any_order(self, tmp_path: Path) -> None:
        tags = [Tag(d, stage, mb) for d in ("forward", "backward") for stage in range(2) for mb in range(3)]

        def body(t: Transport) -> None:
            other = 1 - t.rank
            works = {wanted: t.irecv(other, wanted) for wanted in reversed(tags)}
            t.barrier()
            sends = [t.isend(other, Message(each, {"from": t.rank, "tag": str(each)})) for each in tags]
            for wanted, work in works.items():
                assert work.wait().header == {"from": other, "tag": str(wanted)}
            for send in sends:
                send.wait()

        self.run(tmp_path, 2, body)

    def test_what_nobody_asked_for_yet_does_not_hold_up_the_rest(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 0:
                early = [t.isend(1, numbered(n, MIB, micro_batch=n)) for n in range(8)]
                t.isend(1, numbered(99, micro_batch=99)).wait()
                assert not any(work.done() for work in early)
                for work in early:
                    work.wait()
            else:
                assert t.irecv(0, tag(99)).wait().header["n"] == 99
                for n in reversed(range(8)):
                    assert t.irecv(0, tag(n)).wait().header["n"] == n

        self.run(tmp_path, 2, body)

    def test_a_sent_tensor_may_be_changed_once_the_work_is_done(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank == 0:
                buffer = torch.empty(500_000)
                for n in range(20):
                    buffer.fill_(n)
                    t.isend(1, Message(tag(), {}, {"x": buffer})).wait()
                    buffer.fill_(-1)
                t.barrier()
            else:
                works = [t.irecv(0, tag()) for _ in range(20)]
                t.barrier()  # everything has left before anything is looked at
                for n, work in enumerate(works):
                    assert bool((work.wait().tensors["x"] == n).all())

        self.run(tmp_path, 2, body)

    # what cannot be sent

    def test_bad_input_is_refused_before_anything_is_sent(self, tmp_path: Path) -> None:
        x = {"x": torch.ones(3)}
        bad = [
            Message(Tag("", 0, 0)),
            Message(Tag("d" * 65)),
            Message(Tag("forward", -1)),
            Message(Tag("forward", 0, 2**31)),
            Message(tag(), {"object": object()}),
            Message(tag(), {"huge": 2**64}),
            Message(tag(), {"list": [0] * 2000}),
            Message(tag(), {"text": "x" * (2 * MIB)}),
            Message(tag(), {}, {"c": torch.ones(2, dtype=torch.complex64)}),
            Message(tag(), {}, {"s": torch.ones(2, 2).to_sparse()}),
            Message(tag(), {}, {"n" * 300: torch.ones(2)}),
            Message(tag(), {}, {"x": torch.zeros(5 * MIB)}),
        ]

        def body(t: Transport) -> None:
            other = 1 - t.rank
            for message in bad:
                with pytest.raises(BadInput):
                    t.isend(other, message)
            for peer in (t.rank, 2, -1):
                with pytest.raises(BadInput, match="device"):
                    t.isend(peer, Message(tag(), {}, x))
                with pytest.raises(BadInput, match="device"):
                    t.irecv(peer, tag())
            with pytest.raises(BadInput):
                t.irecv(other, Tag("", 0, 0))
            t.isend(other, Message(tag(), {}, x))
            assert same(t.irecv(other, tag()).wait().tensors["x"], x["x"])
            t.barrier()

        self.run(tmp_path, 2, body, max_message_bytes=16 * MIB)
