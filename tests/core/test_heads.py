"""The trainable head: means of texts, standardisation, and what it starts from."""

import pytest
import torch
from torch.testing import assert_close

from pac_core.contracts.adapter import Rows
from pac_core.heads import PooledHead


@pytest.fixture
def rows() -> Rows:
    return Rows((3, 2), torch.tensor([0, 0, 1, 0, 1]))


HIDDEN = torch.arange(20.0).view(5, 4)


def test_texts_are_pooled_to_their_means(rows: Rows) -> None:
    pooled = PooledHead(4, 2, texts=2).pool(HIDDEN, rows)
    assert_close(pooled[0, 0], HIDDEN[:2].mean(0))
    assert_close(pooled[0, 1], HIDDEN[2])
    assert_close(pooled[1], HIDDEN[3:])
    assert_close(PooledHead(4, 2).pool(HIDDEN, Rows((3, 2)))[1, 0], HIDDEN[3:].mean(0))


def test_a_fresh_head_prefers_nothing(rows: Rows) -> None:
    assert torch.equal(PooledHead(4, 3, texts=2)(HIDDEN, rows), torch.zeros(2, 3))


def test_features_of_a_pair_are_both_means_their_difference_and_product(rows: Rows) -> None:
    head = PooledHead(4, 16, texts=2, dropout=0.0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(16))
    (u, v), _ = head.pool(HIDDEN, rows)
    assert_close(head(HIDDEN, rows)[0], torch.cat([u, v, (u - v).abs(), u * v]))


def test_calibration_standardises_features() -> None:
    head = PooledHead(4, 4, dropout=0.0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(4))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 7
    head.calibrate(values[:, None])
    found = head(values, Rows((1,) * 200))
    assert_close(found.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    assert_close(found.std(0), torch.ones(4), rtol=0, atol=1e-4)


def test_one_sample_does_not_calibrate() -> None:
    head = PooledHead(4, 1)
    head.calibrate(torch.ones(1, 1, 4), targets=torch.tensor([3.0]))
    assert torch.equal(head.deviation, torch.ones(4))
    assert head.target_deviation == 1


def test_channels_that_never_vary_do_not_blow_up() -> None:
    head = PooledHead(4, 1)
    head.calibrate(torch.ones(5, 1, 4), targets=torch.ones(5))
    assert head(torch.ones(1, 4), Rows((1,))).isfinite().all()
    assert head.numbers(torch.zeros(1, 1)).item() == 1.0


def test_regression_answers_in_the_targets_unit() -> None:
    head = PooledHead(4, 1)
    targets = torch.tensor([100.0, 300.0, 200.0])
    head.calibrate(torch.randn(3, 1, 4), targets=targets)
    assert_close(head.numbers(torch.zeros(2, 1)), torch.tensor([200.0, 200.0]))
    assert_close(head.numbers(torch.ones(1, 1)), torch.tensor([300.0]))
    assert_close(head.regression_loss(torch.zeros(3, 1), targets), torch.tensor(2 / 3))
    assert head.regression_loss(((targets - 200) / 100)[:, None], targets) == 0
