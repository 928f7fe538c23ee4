"""The public suite fails for side networks that break the contract."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pac_core.contracts.adapter import SideNetwork
from pac_core.contracts.backbone import DECODER, Backbone
from pac_core.testing import AdapterSuite
from pac_core.testing.adapter_parts import stirred
from pac_plugins.adapters.bottleneck import BottleneckSideNetwork

PLACE = ("gpt2", DECODER)


class Leaky(BottleneckSideNetwork):
    """Rows see each other."""

    def layer(self, *args: Any, **kwargs: Any) -> Tensor:
        state = super().layer(*args, **kwargs)
        return state + state.mean((0, 1), keepdim=True)


class Foresighted(BottleneckSideNetwork):
    """Tokens of a causal stream see those behind them."""

    def layer(self, *args: Any, **kwargs: Any) -> Tensor:
        state = super().layer(*args, **kwargs)
        return state + state.mean(1, keepdim=True)


class Hoarder(BottleneckSideNetwork):
    """A slice keeps everything."""

    def keep(self, stream: str, first: int, last: int) -> None:
        pass


class Restless(BottleneckSideNetwork):
    """Does not start as the frozen model."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        stirred(self)


class Destructive(BottleneckSideNetwork):
    """Writes into the taps."""

    def enter(self, stream: str, b_0: Tensor, *args: Any) -> Tensor:
        return super().enter(stream, b_0.mul_(2), *args)


class Idle(BottleneckSideNetwork):
    """Has a parameter that nothing uses."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))


class Single(BottleneckSideNetwork):
    """Computes in float32 beside a float64 backbone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.float()


def suite_of(side: type[SideNetwork]) -> AdapterSuite:
    class Suite(AdapterSuite):
        adapter = "bottleneck"

        def make(self, backbone: Backbone, config: Any, target: str) -> SideNetwork:
            return side(backbone.info, config, target)

    return Suite()


def trained(suite: AdapterSuite) -> SideNetwork:
    return stirred(suite.side(*PLACE)).eval()


Check = Callable[[AdapterSuite], None]
CHECKS: dict[type[SideNetwork], Check] = {
    Leaky: lambda s: s.test_a_row_is_the_same_alone_and_in_any_batch(trained(s)),
    Foresighted: lambda s: s.test_decoding_step_by_step_gives_what_whole_rows_give(trained(s)),
    Hoarder: lambda s: s.test_the_slices_parameters_add_up_to_the_whole(trained(s), [0.3]),
    Restless: lambda s: s.test_h_is_the_last_hidden_state_bit_for_bit_before_training(PLACE, 0.0),
    Destructive: lambda s: s.test_taps_are_constants(trained(s)),
    Idle: lambda s: s.test_gradients_reach_every_parameter_after_one_step(s.side(*PLACE)),
    Single: lambda s: s.test_parameters_are_float32_unless_the_backbone_is_float64(PLACE, torch.float64),
}


@pytest.mark.parametrize("fault", CHECKS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(fault: type[SideNetwork]) -> None:
    with pytest.raises(AssertionError):
        CHECKS[fault](suite_of(fault))


@pytest.mark.parametrize("fault", CHECKS, ids=lambda fault: fault.__name__)
def test_the_sound_network_passes_the_same_check(fault: type[SideNetwork]) -> None:
    CHECKS[fault](suite_of(BottleneckSideNetwork))
