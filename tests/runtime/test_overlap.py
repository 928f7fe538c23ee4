"""Gradients summed in buckets while a backward pass goes on."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pac_core.contracts.transport import Transport
from pac_core.errors import TransportError
from pac_core.runtime import overlap as module
from pac_core.runtime.overlap import Overlap
from pac_core.testing.threads import in_threads

DEPTH, WIDTH = 6, 8


class Net(nn.Module):
    """Layers, some of which a batch may not reach."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(DEPTH))
        for parameter in self.parameters():
            parameter.data.uniform_(-0.5, 0.5, generator=generator)
            parameter.grad = torch.zeros_like(parameter)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        for layer in self.layers[:depth]:
            x = layer(x).tanh()
        return x.square().sum()


def rows(rank: int, step: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKET_BYTES", 700)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, DEPTH), min_size=3, max_size=3), min_size=1, max_size=4))
def test_sums_are_those_of_one_device_whatever_each_backward_pass_reaches(steps: list[list[int]]) -> None:
    """For each step and device how many layers its batch goes through; none where it has no rows."""

    def device(t: Transport) -> list[list[Tensor]]:
        net = Net()
        overlap = Overlap(list(net.parameters()), t.all_reduce, lambda order: t.broadcast(order, 0))
        found = []
        for step, depths in enumerate(steps):
            net.zero_grad(set_to_none=False)
            overlap.begin()
            if depths[t.rank]:
                net(rows(t.rank, step, 4), depths[t.rank]).backward()
            if not overlap.finish():
                for parameter in net.parameters():
                    assert parameter.grad is not None
                    t.all_reduce(parameter.grad)
            found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        return found

    devices = in_threads(3, device)
    for step, depths in enumerate(steps):
        net = Net()
        for rank, depth in enumerate(depths):
            if depth:
                net(rows(rank, step, 4), depth).backward()
        for gradients in devices:
            for gradient, parameter in zip(gradients[step], net.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12)


def test_what_is_ready_is_summed_before_the_backward_pass_ends() -> None:
    net = Net()
    summed = threading.Event()
    overlap = Overlap(list(net.parameters()), lambda vector: summed.set(), lambda order: None)
    overlap.begin()
    net(rows(0, 0, 4), DEPTH).backward()
    assert not overlap.finish(), "the first step shows the order"
    assert not summed.is_set()
    overlap.begin()
    seen: list[bool] = []
    net.layers[0].weight.register_hook(lambda gradient: seen.append(summed.wait(30)))
    net(rows(0, 1, 4), DEPTH).backward()
    assert seen == [True], "the last layers' gradients were summed while the first layer's were computed"
    assert overlap.finish()


def test_an_error_of_a_sum_is_raised_where_it_is_waited_for() -> None:
    def fail(vector: Tensor) -> None:
        raise TransportError("it broke")

    net = Net()
    overlap = Overlap(list(net.parameters()), fail, lambda order: None)
    for _ in range(2):
        overlap.begin()
        net(rows(0, 0, 4), DEPTH).backward()
        if overlap._buckets:
            with pytest.raises(TransportError, match="it broke"):
                overlap.finish()
        else:
            overlap.finish()
