"""Bundled side networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pac_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from pac_core.contracts.adapter import AdapterConfig, SideNetwork
    from pac_core.contracts.backbone import Backbone


def _parallel(backbone: Backbone, config: AdapterConfig, target: str) -> SideNetwork:
    from pac_plugins.adapters.parallel import build

    return build(backbone, config, target)


def _bottleneck(backbone: Backbone, config: AdapterConfig, target: str) -> SideNetwork:
    from pac_plugins.adapters.bottleneck import BottleneckSideNetwork

    return BottleneckSideNetwork(backbone.info, config, target)


@hookimpl
def pac_register_adapters(register: Register) -> None:
    """Offer ``parallel`` and ``bottleneck``."""
    register("parallel", _parallel, summary="A trimmed transformer layer for each tap, pruned from the backbone")
    register("bottleneck", _bottleneck, summary="A down and an up projection for each tap, no attention")
