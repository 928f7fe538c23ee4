"""What collectives of a transport must do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput, TransportTimeout
from pac_core.testing.transport_values import DTYPES, MIB, same, values

_SUMMED = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64)


class CollectiveTests:
    """The part of `pac_core.testing.TransportSuite` for groups."""

    def run(
        self, tmp_path: Path, size: int, body: Callable[[Transport], Any], dying: tuple[int, ...] = (), **changes: Any
    ) -> list[Any]:
        """See `pac_core.testing.TransportSuite.run`."""
        raise NotImplementedError

    def test_all_reduce_sums_every_type_and_size(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            for dtype in _SUMMED:
                for count in (0, 1, 2, 3, 1000):
                    tensor = torch.arange(count).remainder(20).add(t.rank).to(dtype)
                    t.all_reduce(tensor)
                    expected = (torch.arange(count).remainder(20) * 3 + 3).to(dtype)
                    assert same(tensor, expected), (dtype, count)
            square = torch.full((30, 70), float(t.rank))
            t.all_reduce(square)
            assert same(square, torch.full((30, 70), 3.0))
            gradient = torch.ones(5, requires_grad=True)
            with torch.no_grad():
                t.all_reduce(gradient)
            assert gradient.tolist() == [3.0] * 5

        self.run(tmp_path, 3, body)

    def test_every_member_has_the_same_bits_after_all_reduce(self, tmp_path: Path) -> None:
        def body(t: Transport) -> tuple[list[int], float]:
            tensor = _noise(t.rank).float()
            t.all_reduce(tensor)
            exact = _noise(0) + _noise(1) + _noise(2)
            return tensor.view(torch.int32).tolist(), float((tensor - exact).abs().div(exact.abs() + 1).max())

        (first, error), *others = self.run(tmp_path, 3, body)
        assert all(bits == first for bits, _ in others)
        assert error < 1e-4

    def test_broadcast_gives_all_the_tensor_of_the_root(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            for root in range(3):
                for dtype in DTYPES:
                    expected = values(dtype, 11, 3)
                    tensor = expected.clone() if t.rank == root else torch.zeros_like(expected)
                    t.broadcast(tensor, root)
                    assert same(tensor, expected), (root, dtype)
            large = values(torch.float32, 3 * MIB + 5) if t.rank == 1 else torch.zeros(3 * MIB + 5)
            t.broadcast(large, 1)
            assert same(large, values(torch.float32, 3 * MIB + 5))
            t.broadcast(torch.zeros(0), 2)

        self.run(tmp_path, 3, body)

    def test_gather_gives_the_root_all_tensors_in_order(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            for root in range(3):
                own = torch.full((4, 2), t.rank * 10 + root, dtype=torch.bfloat16)
                found = t.gather(own, root)
                if t.rank != root:
                    assert found is None
                    continue
                assert found is not None
                assert [tuple(x.shape) for x in found] == [(4, 2)] * 3
                assert [int(x[0, 0]) for x in found] == [root, 10 + root, 20 + root]
                own.zero_()
                assert int(found[t.rank][0, 0]) == t.rank * 10 + root

        self.run(tmp_path, 3, body)

    def test_nobody_leaves_a_barrier_before_all_have_come(self, tmp_path: Path) -> None:
        def body(t: Transport) -> tuple[float, float]:
            t.barrier()
            time.sleep(0.3 if t.rank == 1 else 0)
            came = time.monotonic()  # one clock for all processes of a machine
            t.barrier()
            return came, time.monotonic()

        times = self.run(tmp_path, 3, body)
        assert min(left for _, left in times) >= max(came for came, _ in times)

    def test_groups_work_beside_each_other(self, tmp_path: Path) -> None:
        groups = {(0, 2): 2.0, (1, 3): 4.0, (0, 1): 1.0, (2, 3): 5.0, (0, 1, 2, 3): 6.0, (1,): 1.0}

        def body(t: Transport) -> None:
            for _ in range(3):
                for group, expected in groups.items():
                    if t.rank not in group:
                        continue
                    tensor = torch.full((5,), float(t.rank))
                    t.all_reduce(tensor, group)
                    assert tensor.tolist() == [expected] * 5, group
                    sent = torch.tensor([t.rank])
                    t.broadcast(sent, group[-1], group)
                    assert int(sent) == group[-1]
                    t.barrier(group)

        self.run(tmp_path, 4, body)

    def test_collectives_of_two_groups_may_run_at_once(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            wrong: list[str] = []
            groups = [(0, 1, 2), (0, 1)] if t.rank < 2 else [(0, 1, 2)]

            def reduce(group: tuple[int, ...]) -> None:
                for n in range(10):
                    tensor = torch.full((1000,), float(n))
                    t.all_reduce(tensor, group)
                    if not bool((tensor == n * len(group)).all()):
                        wrong.append(f"{group}: {tensor[0]}")

            for group in groups:  # a transport may have to set up each group once, in one order
                t.barrier(group)
            threads = [threading.Thread(target=reduce, args=(group,)) for group in groups]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong
            t.barrier()

        self.run(tmp_path, 3, body)

    def test_a_group_or_tensor_that_cannot_be_used_is_refused(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            x = torch.ones(4)
            for group in [(), (0, 2), (1, 0), (0, 0, 1), (-1, 0, 1), (1 - t.rank,)]:
                with pytest.raises(BadInput, match="group"):
                    t.all_reduce(x, group)
            with pytest.raises(BadInput, match="not in the group"):
                t.broadcast(x, 1 - t.rank, (t.rank,))
            for tensor in (torch.ones(4, 4).T[:2], torch.ones(3, dtype=torch.bool), torch.ones(3, requires_grad=True)):
                with pytest.raises(BadInput):
                    t.all_reduce(tensor)
            t.barrier()
            assert x.tolist() == [1.0] * 4

        self.run(tmp_path, 2, body)

    def test_a_member_that_does_not_come_is_a_time_out(self, tmp_path: Path) -> None:
        def body(t: Transport) -> None:
            if t.rank < 2:
                t.barrier((0, 1))
            if t.rank == 0:
                begun = time.monotonic()
                with pytest.raises(TransportTimeout):
                    t.all_reduce(torch.ones(1000), (0, 1), timeout=0.5)
                assert time.monotonic() - begun >= 0.4
            t.barrier()

        self.run(tmp_path, 3, body)


def _noise(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(10_007, generator=generator) * 10 ** torch.randn(10_007, generator=generator)).double()
