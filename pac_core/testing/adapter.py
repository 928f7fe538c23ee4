"""The conformance suite of adapters."""

from __future__ import annotations

import copy
import re
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pac_core.contracts.adapter import AdapterConfig, SideNetwork, Taps
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone
from pac_core.errors import BadInput
from pac_core.registry import Registry
from pac_core.testing.adapter_parts import (
    HALF,
    WHOLE,
    chain,
    cut_bounds,
    in_steps,
    only_row,
    random_taps,
    sliced_chain,
    slices,
    stirred,
    tiny_backbone,
)

TARGETS = (
    ("bert", ENCODER),
    ("gpt2", DECODER),
    ("llama", DECODER),
    ("t5", DECODER),
    ("t5", ENCODER),
    ("bart", DECODER),
)
"""Families, and the stream whose last hidden states the side network is to give."""

DRAWN = settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture],
)
ROWS = st.lists(st.integers(1, 7), min_size=1, max_size=4)


class AdapterSuite:
    """Everything the `SideNetwork` contract promises, over tiny backbones of every bundled family.

    Subclass it in a test module, name the class ``Test...``, and say which adapter it is::

        class TestMyAdapter(AdapterSuite):
            adapter = "my-adapter"

    where the plugin is installed; else override `make`.

    Attributes:
        adapter: the registered name.
        settings: further fields of the configuration, such as ``options``.
        targets: families (`pac_core.testing.tiny.FAMILIES`) and target streams that the adapter serves.
    """

    adapter: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    targets: ClassVar[tuple[tuple[str, str], ...]] = TARGETS

    def make(self, backbone: Backbone, config: AdapterConfig, target: str) -> SideNetwork:
        """The side network, as the registered factory builds it."""
        side: SideNetwork = Registry().get("adapters", config.name)(backbone, config, target)
        return side

    def side(self, family: str, target: str, dtype: torch.dtype = torch.float64, **fields: Any) -> SideNetwork:
        """A fresh side network without dropout beside the tiny backbone of ``family``."""
        given = {"name": self.adapter, "reduction": 4, "dropout": 0.0, **self.settings, **fields}
        torch.manual_seed(0)
        return self.make(tiny_backbone(family, dtype), AdapterConfig(**given), target)

    @pytest.fixture
    def fresh(self, place: tuple[str, str]) -> SideNetwork:
        return self.side(*place)

    @pytest.fixture
    def trained(self, fresh: SideNetwork) -> SideNetwork:
        return stirred(fresh).eval()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "place" in metafunc.fixturenames:
            metafunc.parametrize("place", self.targets, ids="-".join)

    # The start.

    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_h_is_the_last_hidden_state_bit_for_bit_before_training(
        self, place: tuple[str, str], dropout: float
    ) -> None:
        side = self.side(*place, dropout=dropout).train()
        taps = random_taps(side, [3, 5], sources=[4, 2])
        assert torch.equal(side(taps), taps[side.target].values[-1])
        side.calibrate(torch.rand(side.info.hidden_size, dtype=torch.float64) + 0.1)
        assert torch.equal(side(taps), taps[side.target].values[-1])

    def test_training_moves_h(self, fresh: SideNetwork) -> None:
        taps = random_taps(fresh, [3, 5], sources=[4, 2])
        last = taps[fresh.target].values[-1]
        optimizer = torch.optim.SGD(fresh.parameters(), lr=1.0)
        fresh(taps).square().mean().backward()
        optimizer.step()
        assert (fresh(taps) - last).abs().max() > 1e-4

    # The chain and its slices.

    def test_enter_layer_exit_give_what_forward_gives(self, trained: SideNetwork) -> None:
        taps = random_taps(trained, [3, 5], sources=[4, 2])
        assert_close(chain(trained, taps), trained(taps), rtol=0.0, atol=WHOLE)
        rows = taps[trained.target].rows
        state = trained.enter(trained.target, taps[trained.target].values[0], rows)
        assert state.shape[:2] == (2, 5)

    @pytest.mark.parametrize("cuts", [[0.3], [0.6], [0.3, 0.7]], ids=str)
    def test_slices_run_one_after_another_give_what_the_whole_gives(
        self, trained: SideNetwork, cuts: list[float]
    ) -> None:
        taps = random_taps(trained, [3, 5], sources=[4, 2])
        bounds = cut_bounds(trained, cuts)
        assert_close(sliced_chain(slices(trained, bounds), bounds, taps), trained(taps), rtol=0.0, atol=WHOLE)

    @pytest.mark.parametrize("cuts", [[0.3], [0.3, 0.7]], ids=str)
    def test_the_slices_parameters_add_up_to_the_whole(self, trained: SideNetwork, cuts: list[float]) -> None:
        states = [part.state_dict() for part in slices(trained, cut_bounds(trained, cuts))]
        names = [name for state in states for name in state]
        assert sorted(names) == sorted(trained.state_dict())
        united = {name: tensor for state in states for name, tensor in state.items()}
        assert all(torch.equal(united[name], tensor) for name, tensor in trained.state_dict().items())

    @pytest.mark.parametrize("last", [0, 1])
    def test_a_slice_without_layers_of_a_stream_holds_nothing_of_it(self, trained: SideNetwork, last: int) -> None:
        part = copy.deepcopy(trained)
        for stream in part.reads:
            part.keep(stream, 1, last)
        assert part.trainable() == 0

    # Rows.

    @given(lengths=ROWS, seed=st.integers(0, 9), pairs=st.booleans(), data=st.data())
    @DRAWN
    def test_a_row_is_the_same_alone_and_in_any_batch(
        self, trained: SideNetwork, lengths: list[int], seed: int, pairs: bool, data: Any
    ) -> None:
        sources = data.draw(st.lists(st.integers(1, 7), min_size=len(lengths), max_size=len(lengths)))
        taps = random_taps(trained, lengths, sources=sources, seed=seed, pairs=pairs)
        together = trained(taps)
        for row in range(len(lengths)):
            here = taps[trained.target].rows.row_of == row
            assert_close(trained(only_row(taps, row)), together[here], rtol=0.0, atol=WHOLE)

    @given(lengths=st.integers(2, 8), data=st.data(), seed=st.integers(0, 9))
    @DRAWN
    def test_decoding_step_by_step_gives_what_whole_rows_give(
        self, trained: SideNetwork, lengths: int, data: Any, seed: int
    ) -> None:
        if not trained.info.stream(trained.target).causal:
            pytest.skip("the target stream is not causal")
        cuts = sorted(data.draw(st.sets(st.integers(1, lengths - 1), min_size=1), label="cuts"))
        taps = random_taps(trained, [lengths] * 3, sources=[4, 2, 7], seed=seed)
        whole = trained(taps).view(3, lengths, -1)
        assert_close(in_steps(trained, taps, cuts), whole, rtol=0.0, atol=WHOLE)

    # Learning.

    def test_gradients_reach_every_parameter_after_one_step(self, fresh: SideNetwork) -> None:
        taps = random_taps(fresh, [3, 6], sources=[4, 3], pairs=True)
        optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
        weights = torch.randn(taps[fresh.target].values.shape[1:], dtype=torch.float64)
        for _ in range(2):
            optimizer.zero_grad()
            (fresh(taps) * weights).sum().backward()
            optimizer.step()
        assert [n for n, p in fresh.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []

    def test_taps_are_constants(self, trained: SideNetwork) -> None:
        taps = random_taps(trained, [3, 5], sources=[4, 2])
        before = {stream: those.values.clone() for stream, those in taps.items()}
        trained(taps).square().sum().backward()
        assert all(torch.equal(before[stream], those.values) for stream, those in taps.items())
        assert not any(those.values.requires_grad for those in taps.values())

    def test_half_taps_give_what_the_same_numbers_in_float32_give(self, place: tuple[str, str]) -> None:
        side = stirred(self.side(*place, dtype=torch.float32)).eval()
        if not side.half_taps:
            pytest.skip("the side network takes taps in its own dtype only")
        whole = random_taps(side, [3, 5], sources=[4, 2])
        half = {s: Taps(t.values.bfloat16(), t.rows) for s, t in whole.items()}
        same = {s: Taps(t.values.float(), t.rows) for s, t in half.items()}
        a, b = side.final(half), side.final(same)
        assert a.dtype == torch.float32
        assert (a - b).norm() < HALF * b.norm()

    def test_dropout_acts_only_in_training(self, place: tuple[str, str]) -> None:
        side = stirred(self.side(*place, dropout=0.5))
        taps = random_taps(side, [3, 5], sources=[4, 2])
        side.eval()
        assert torch.equal(side(taps), side(taps))
        side.train()
        assert not torch.equal(side(taps), side(taps))

    def test_the_channels_scale_is_taken_from_calibration_or_ignored(self, trained: SideNetwork) -> None:
        taps = random_taps(trained, [3, 5], sources=[4, 2])
        trained.calibrate(torch.full((trained.info.hidden_size,), 0.5, dtype=torch.float64))
        half = trained(taps)
        assert half.isfinite().all()
        restored = self.make(tiny_backbone(trained.info.model_type), trained.config, trained.target).eval()
        restored.load_state_dict(trained.state_dict())
        assert torch.equal(restored(taps), half)

    # Configuration.

    @pytest.mark.parametrize("every", [2, 3, 5])
    def test_every_mth_layer_is_tapped(self, place: tuple[str, str], every: int) -> None:
        side = stirred(self.side(*place, tap_every=every)).eval()
        taps = random_taps(side, [3, 5], sources=[4, 2])
        assert side(taps).shape == taps[side.target].values.shape[1:]
        assert torch.equal(chain(side, taps), side(taps))
        if every < side.info.stream(side.target).layers:
            bounds = cut_bounds(side, [0.5])
            assert torch.equal(sliced_chain(slices(side, bounds), bounds, taps), side(taps))
        assert side.trainable() < self.side(*place).trainable()

    def test_a_reduction_that_does_not_divide_is_refused_with_those_that_do(self, place: tuple[str, str]) -> None:
        with pytest.raises(BadInput) as refused:
            self.side(*place, reduction=5)
        told = str(refused.value)
        fitting = [int(n) for n in re.split(r"those that do:", told)[1].split(",")]
        assert fitting
        for reduction in fitting:
            self.side(*place, reduction=reduction)

    @pytest.mark.parametrize("reduction", [1, 2, 8])
    def test_a_larger_reduction_makes_a_smaller_network(self, place: tuple[str, str], reduction: int) -> None:
        side = stirred(self.side(*place, reduction=reduction)).eval()
        taps = random_taps(side, [3, 5], sources=[4, 2])
        assert side(taps).isfinite().all()
        assert (side.trainable() < self.side(*place).trainable()) == (reduction > 4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_parameters_are_float32_unless_the_backbone_is_float64(
        self, place: tuple[str, str], dtype: torch.dtype
    ) -> None:
        side = self.side(*place, dtype=dtype)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert {tensor.dtype for tensor in side.state_dict().values()} == {wanted}
        assert side(random_taps(side, [3, 5], sources=[4, 2])).dtype == wanted

    # Copies.

    def test_one_seed_makes_one_network(self, place: tuple[str, str]) -> None:
        one, two = self.side(*place).state_dict(), self.side(*place).state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_deep_copy_is_equal_and_apart(self, trained: SideNetwork) -> None:
        taps = random_taps(trained, [3, 5], sources=[4, 2])
        before = trained(taps)
        copied = copy.deepcopy(trained)
        assert torch.equal(copied(taps), before)
        stirred(copied, seed=1)
        assert torch.equal(trained(taps), before)

    def test_a_state_dict_restores_the_network(self, place: tuple[str, str], trained: SideNetwork) -> None:
        other = self.side(*place).eval()
        other.load_state_dict(trained.state_dict())
        taps = random_taps(trained, [3, 5], sources=[4, 2])
        assert torch.equal(other(taps), trained(taps))

    def test_reads_ends_with_the_target(self, fresh: SideNetwork) -> None:
        assert fresh.reads[-1] == fresh.target
        assert set(fresh.reads) <= {stream.name for stream in fresh.info.streams}
