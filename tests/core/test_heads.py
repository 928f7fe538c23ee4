"""The trainable head: means of texts, standardisation, and what it starts from."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from pac_core.contracts.adapter import Rows
from pac_core.heads import QUERIES, Pooled, PooledHead, peaks

HIDDEN = torch.arange(20.0).view(5, 4)


@pytest.fixture
def rows() -> Rows:
    return Rows((3, 2), torch.tensor([0, 0, 1, 0, 1]))


def pooled(hidden: torch.Tensor, width: int = 2) -> Pooled:
    """What a head reads of means (rows, texts, d), beside a side network that says nothing."""
    return Pooled(hidden, torch.zeros(*hidden.shape[:2], width), torch.zeros(len(hidden), width), None)


def test_texts_are_pooled_to_their_means(rows: Rows) -> None:
    found = PooledHead(4, 2, 1, texts=2).pool(HIDDEN, rows)
    assert_close(found[0, 0], HIDDEN[:2].mean(0))
    assert_close(found[0, 1], HIDDEN[2])
    assert_close(found[1], HIDDEN[3:])
    assert_close(PooledHead(4, 2, 1).pool(HIDDEN, Rows((3, 2)))[1, 0], HIDDEN[3:].mean(0))


def test_peaks_are_the_largest_values_of_each_row(rows: Rows) -> None:
    values = torch.tensor([[1.0, -9.0], [5.0, -8.0], [2.0, -7.0], [-3.0, 0.0], [-4.0, 1.0]])
    assert_close(peaks(values, rows), torch.tensor([[5.0, -7.0], [-3.0, 1.0]]))


@pytest.mark.parametrize("texts", [1, 2])
def test_a_fresh_head_prefers_nothing(texts: int) -> None:
    assert torch.equal(PooledHead(4, 2, 3, texts=texts)(pooled(torch.randn(2, texts, 4))), torch.zeros(2, 3))


def test_two_texts_are_compared_by_difference_and_product() -> None:
    head = PooledHead(4, 2, 8, texts=2, dropout=0.0)
    with torch.no_grad():
        head.wide.weight.copy_(torch.eye(8))
    means = torch.randn(3, 2, 4)
    u, v = means.unbind(1)
    assert_close(head(pooled(means)), torch.cat([(u - v).abs(), u * v], 1))


def test_calibration_standardises_features() -> None:
    head = PooledHead(4, 2, 4, dropout=0.0)
    with torch.no_grad():
        head.wide.weight.copy_(torch.eye(4))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 1, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 7
    head.calibrate(values)
    found = head(pooled(values))
    assert_close(found.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    assert_close(found.std(0), torch.ones(4), rtol=0, atol=1e-4)


def test_one_sample_does_not_calibrate() -> None:
    head = PooledHead(4, 2, 1)
    head.calibrate(torch.ones(1, 1, 4), targets=torch.tensor([3.0]))
    assert torch.equal(head.deviation, torch.ones(4))
    assert head.target_deviation == 1


def test_channels_that_never_vary_do_not_blow_up() -> None:
    head = PooledHead(4, 2, 1)
    head.calibrate(torch.ones(5, 1, 4), targets=torch.ones(5))
    assert head(pooled(torch.ones(1, 1, 4))).isfinite().all()
    assert head.numbers(torch.zeros(1, 1)).item() == 1.0


def test_regression_answers_in_the_targets_unit() -> None:
    head = PooledHead(4, 2, 1)
    targets = torch.tensor([100.0, 300.0, 200.0])
    head.calibrate(torch.randn(3, 1, 4), targets=targets)
    assert_close(head.numbers(torch.zeros(2, 1)), torch.tensor([200.0, 200.0]))
    assert_close(head.numbers(torch.ones(1, 1)), torch.tensor([300.0]))
    assert_close(head.regression_loss(torch.zeros(3, 1), targets), torch.tensor(2 / 3))
    assert head.regression_loss(((targets - 200) / 100)[:, None], targets) == 0


def test_matches_are_pooled_by_weights_of_the_state(rows: Rows) -> None:
    head = PooledHead(4, 2, 1, texts=2, taps=3)
    assert head.matches is not None
    match, state = torch.randn(3, 5), torch.randn(5, 2)
    matched = replace(rows, match=match)
    found = head.attend(state, matched)
    assert found is not None
    alike = torch.stack([match[:, :2].mean(1), match[:, 2], match[:, 3], match[:, 4]]).view(2, 2, 1, 3)
    assert_close(found.view(2, 2, QUERIES, 3), alike.expand(2, 2, QUERIES, 3))
    torch.nn.init.normal_(head.matches.query.weight)
    found = head.attend(state, matched)
    assert found is not None
    weight = (state[:2] @ head.matches.query.weight.T).softmax(0)
    assert_close(found.view(2, 2, QUERIES, 3)[0, 0], weight.T @ match[:, :2].T)
    assert head.attend(state, rows) is None
