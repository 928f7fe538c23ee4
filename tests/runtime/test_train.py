"""Optimiser steps: micro-batches, rates, groups, reading ahead."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pac_core.batches import epoch_batches
from pac_core.config import OptimizerConfig, RunConfig
from pac_core.examples import IGNORE
from pac_core.registry import Registry
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.load import Loaded, load
from pac_core.runtime.optimizer import clip, cut, lr_factor, make_optimizer, set_rates, united
from pac_core.runtime.team import ALONE
from pac_core.runtime.train import Trainer, optimizer_step, step_seed, steps

DRAWN = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


@pytest.fixture(params=["bert", "gpt2", "t5"])
def loaded(request: Any, config: Any, answers: Any) -> Iterator[tuple[RunConfig, Loaded]]:
    family = request.param
    given_config = config(
        None if family == "bert" else answers(13),
        family=family,
        dtype="float64",
        cache__dtype="float64",
        adapter__dropout=0.0,
        optimizer__max_grad_norm=None,
    )
    made = load(given_config, Registry())
    made.model.calibrated.fill_(True)
    if made.model.head is not None:
        made.model.head.dropout.p = 0.0
    yield given_config, made
    made.model.reader.close()


def gradients(config: RunConfig, loaded: Loaded, batch: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step that does not move the weights."""
    optimizer = torch.optim.SGD([{"params": list(loaded.model.parameters()), "peak": 0.0}], lr=0.0)
    data = ALONE.share_out(loaded.train, config.batch_size, 0)
    trainer = Trainer(config, loaded.model, optimizer, data, 1, Path("x"), {}, StopFlag(), lambda *a: None)
    ((examples, micro),) = steps(trainer, [batch])
    loss = optimizer_step(trainer, examples, micro, 1.0)
    named = loaded.model.named_parameters()
    return loss, {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


@given(size=st.integers(1, 13), order=st.permutations(range(13)), count=st.integers(1, 13))
@DRAWN
def test_any_cut_of_a_batch_gives_the_gradient_of_the_whole(
    loaded: tuple[RunConfig, Loaded], size: int, order: list[int], count: int
) -> None:
    config, made = loaded
    stir(made)
    batch = list(order)[:count]
    whole = gradients(config, made, batch)
    micro = gradients(config.model_copy(update={"micro_batch_size": size}), made, batch)
    assert micro[0] == pytest.approx(whole[0], rel=1e-9)
    assert max(g.abs().max() for g in whole[1].values()) > 1e-6
    for name, expected in whole[1].items():
        torch.testing.assert_close(micro[1][name], expected, rtol=1e-9, atol=1e-9, msg=name)


def test_a_part_without_predictions_changes_nothing(loaded: tuple[RunConfig, Loaded]) -> None:
    config, made = loaded
    if not made.model.task.generates:
        pytest.skip("every sample has a prediction")
    stir(made)
    silent = replace(made.train[0], target=np.full_like(made.train[0].target, IGNORE))
    made = replace(made, train=[silent, *made.train[1:]])
    whole = gradients(config, made, [0, 1, 2])
    micro = gradients(config.model_copy(update={"micro_batch_size": 1}), made, [0, 1, 2])
    assert micro[0] == pytest.approx(whole[0], rel=1e-9)
    for name, expected in whole[1].items():
        torch.testing.assert_close(micro[1][name], expected, rtol=1e-9, atol=1e-9, msg=name)


def stir(loaded: Loaded) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)


def test_learnt_counts_what_the_mean_loss_is_over(loaded: tuple[RunConfig, Loaded]) -> None:
    _, made = loaded
    counted = made.model.learnt(made.train[:5])
    if made.model.task.generates:
        assert counted == sum(sum(t != IGNORE for t in e.target.tolist()) for e in made.train[:5])
        assert counted > 5
    else:
        assert counted == 5


def test_epochs_differ_in_order_and_repeat_by_seed(loaded: tuple[RunConfig, Loaded]) -> None:
    config, made = loaded
    data = ALONE.share_out(made.train, config.batch_size, 0)
    one, again, two = (epoch_batches(data, 0, epoch) for epoch in (1, 1, 2))
    assert one == again
    assert one != two
    assert sorted(i for batch in one for i in batch) == list(range(len(made.train)))
    assert step_seed(0, 1, 2) != step_seed(0, 2, 1)


def test_matrices_decay_vectors_do_not_and_the_head_has_its_own_rate(loaded: tuple[RunConfig, Loaded]) -> None:
    _, made = loaded
    optimizer = make_optimizer(made.model, OptimizerConfig(lr=0.5, head_lr=0.05, weight_decay=0.3))
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == made.model.trainable()
    for name, parameter in made.model.named_parameters():
        group = group_of(optimizer, parameter)
        assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
        assert group["peak"] == pytest.approx(0.05 if name.startswith("head.wide.") else 0.5)


def group_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    """The group whose united parameter ``parameter`` is a view of, gradient included."""
    (found,) = [g for g in optimizer.param_groups if inside(parameter, g["params"][0])]
    assert inside(parameter.grad, found["params"][0].grad)
    return found


def inside(part: torch.Tensor | None, whole: torch.Tensor) -> bool:
    assert part is not None
    return whole.data_ptr() <= part.data_ptr() < whole.data_ptr() + whole.nbytes


def test_one_vector_of_all_parameters_trains_as_they_would_one_by_one() -> None:
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    other = copy.deepcopy(one)
    whole = united(list(other.parameters()), torch.zeros(32))
    optimizers = torch.optim.AdamW(one.parameters(), lr=0.1), torch.optim.AdamW([whole], lr=0.1)
    for step in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for layers, optimizer in zip((one, other), optimizers):
            optimizer.zero_grad(set_to_none=False)
            layers(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_rate_rises_then_falls(schedule: Any, expected: list[float]) -> None:
    factor = lr_factor(OptimizerConfig(warmup=0.34, schedule=schedule), 6)
    assert [factor(step) for step in range(6)] == pytest.approx(expected, abs=1e-5)


def test_rates_are_parts_of_each_groups_peak() -> None:
    one, two = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [one], "peak": 1.0}, {"params": [two], "peak": 0.1}], lr=9.0)
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


@pytest.mark.parametrize(("norm", "expected"), [(1.0, 1.0), (100.0, 5.0), (None, 5.0)])
def test_gradients_are_scaled_down_to_the_norm(norm: float | None, expected: float) -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    clip(torch.optim.SGD(layer.parameters()), norm)
    assert layer.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)


def test_batches_are_cut_into_runs() -> None:
    assert cut(5, 2) == [[0, 1], [2, 3], [4]]
    assert cut(5, None) == [[0, 1, 2, 3, 4]]
