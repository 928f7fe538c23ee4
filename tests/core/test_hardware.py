"""Choosing a library for matrix products changes their time, not their results."""

import pytest
import torch
from torch.nn import functional as F

from pac_core import hardware
from pac_core.hardware import LARGE, fast_products, multiplies_bfloat16

PRODUCTS = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def as_before():
    before = PRODUCTS.fp32_precision
    yield
    assert PRODUCTS.fp32_precision == before


def able(monkeypatch: pytest.MonkeyPatch, **capabilities: object) -> None:
    monkeypatch.setattr(hardware, "cpu_capabilities", lambda: capabilities)


ZEN = {"cpu_name": "AMD EPYC", "avx512_f": True, "amx_tile": False}


def test_products_are_float32_to_the_last_bits_on_this_machine() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(LARGE, 96), torch.randn(384, 96, requires_grad=True)
    exact = F.linear(x.double(), w.double())
    with fast_products(LARGE):
        found = F.linear(x, w)
        (gradient,) = torch.autograd.grad(found.square().sum(), w)
    (wanted,) = torch.autograd.grad(exact.square().sum(), w)
    assert (found - exact).norm() < 1e-6 * exact.norm()
    assert (gradient - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("differing", "changed"),
    [({}, True), ({"amx_tile": True}, False), ({"cpu_name": "Intel Xeon"}, False), ({"avx512_f": False}, False)],
)
def test_only_processors_that_gain_and_lose_nothing_change(
    monkeypatch: pytest.MonkeyPatch, differing: dict[str, object], changed: bool
) -> None:
    able(monkeypatch, **{**ZEN, **differing})
    with fast_products(LARGE):
        assert (PRODUCTS.fp32_precision == "bf16") == changed


def test_small_batches_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    able(monkeypatch, **ZEN)
    with fast_products(LARGE - 1):
        assert PRODUCTS.fp32_precision != "bf16"


def test_the_choice_ends_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    able(monkeypatch, **ZEN)
    with pytest.raises(ZeroDivisionError), fast_products(LARGE):
        raise ZeroDivisionError


def test_attention_keeps_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    able(monkeypatch, **ZEN)
    before, inside = PRODUCTS.fp32_precision, []

    class Told(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            inside.append((func, PRODUCTS.fp32_precision))
            return super().__torch_function__(func, types, args, kwargs or {})

    query = torch.randn(1, 1, 4, 8).as_subclass(Told)
    with fast_products(LARGE):
        found = F.scaled_dot_product_attention(query, query, query)
        F.linear(query, torch.eye(8))
    assert inside == [(F.scaled_dot_product_attention, before), (F.linear, "bf16")]
    plain = query.as_subclass(torch.Tensor)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), F.scaled_dot_product_attention(plain, plain, plain))


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_bfloat16_units_are_told_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: bool
) -> None:
    able(monkeypatch, **capabilities)
    assert multiplies_bfloat16(torch.device("cpu")) == expected
    assert not multiplies_bfloat16(torch.device("meta"))
