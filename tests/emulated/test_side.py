"""Emulated backbones and side networks beside the real ones: the same names, shapes and order, after a wait."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pac_core.config import RunConfig
from pac_core.contracts.adapter import Rows, Taps
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.emulated.backbone import PREFIX
from pac_core.emulated.clock import Clock
from pac_core.emulated.emulate import emulating
from pac_core.errors import BadInput
from pac_core.registry import Registry
from pac_core.testing.tiny import WIDTH, save_tiny

LENGTHS = (3, 5)


@pytest.fixture(params=["bert", "t5"])
def parts(request: Any, tmp_path: Path, monkeypatch: Any) -> tuple[Backbone, Any, Any, list[float]]:
    """An emulated backbone, an emulated side network and a real one, and the seconds that were waited for."""
    waited: list[float] = []
    monkeypatch.setattr(Clock, "spend", lambda self, seconds: waited.append(seconds))
    path = save_tiny(tmp_path / request.param, request.param)
    given = {"model": str(path), "train": "none", "emulate": "jetson-nano", "adapter": {"reduction": 4}}
    config = RunConfig.build(given)
    source = BackboneSource(path, layers={}, dtype=torch.float32)
    registry = emulating(Registry(), config)
    backbone = registry.get("backbones", request.param)(source)
    target = DECODER if request.param == "t5" else ENCODER
    side = registry.get("adapters", "parallel")(backbone, config.adapter, target)
    random = config.adapter.model_copy(update={"init": "random"})
    return backbone, side, Registry().get("adapters", "parallel")(backbone, random, target), waited


def taps(backbone: Backbone, side: Any) -> dict[str, Taps]:
    counts = {stream.name: stream.layers + 1 for stream in backbone.info.streams}
    return {s: Taps(torch.zeros(counts[s], sum(LENGTHS), WIDTH), Rows(LENGTHS)) for s in side.reads}


def test_layers_of_the_backbone_give_zeros_after_a_wait(parts: Any) -> None:
    backbone, _, _, waited = parts
    mask = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]
    entry = backbone.embed(ENCODER, torch.ones(2, 5, dtype=torch.long), mask)
    layers = backbone.info.stream(ENCODER).layers
    after = list(backbone.run(ENCODER, 0, layers, entry))
    assert [tuple(each["hidden"].shape) for each in after] == [(2, 5, WIDTH)] * layers
    assert all(bool((each["hidden"] == 0).all()) and each["hidden"].dtype == torch.float32 for each in after)
    assert len(waited) == layers
    assert min(waited) > 0


def test_its_entries_are_never_taken_for_real_ones(parts: Any) -> None:
    assert parts[0].info.fingerprint.startswith(PREFIX)


def test_a_side_network_trains_what_the_real_one_trains(parts: Any) -> None:
    """The same parameters get gradients, which are zeros, and the states have the same shapes."""
    backbone, side, real, _ = parts
    given = taps(backbone, side)
    finals = [network.final(given) for network in (side, real)]
    assert finals[0].shape == finals[1].shape
    for network, state in zip((side, real), finals):
        network.exit(side.target, state, given[side.target].last).sum().backward()
    named = {name.removeprefix("real."): p for name, p in side.named_parameters()}
    assert {n: p.shape for n, p in named.items()} == {n: p.shape for n, p in real.named_parameters()}
    reached = {name for name, p in real.named_parameters() if p.grad is not None}
    assert {name for name, p in named.items() if p.grad is not None} == reached
    assert all(not p.grad.any() for n, p in named.items() if p.grad is not None and not n.endswith("exit.up.weight"))


def test_gradients_are_ready_as_the_backward_pass_goes_on(parts: Any) -> None:
    """So that they can be summed meanwhile: those of late layers come before the waits of early ones."""
    backbone, side, _, waited = parts
    order: list[tuple[str, int]] = []
    for name, parameter in side.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: order.append((name, len(waited))))
    state = side.final(taps(backbone, side))
    before = len(waited)
    assert before == sum(backbone.info.stream(s).layers for s in side.reads)
    state.sum().backward()
    assert len(waited) == 2 * before
    last = backbone.info.stream(side.target).layers
    late = [when for name, when in order if f"{side.target}.layers.{last}." in name]
    early = [when for name, when in order if f"{side.reads[0]}.layers.1." in name]
    assert max(late) <= before + 1
    assert min(early) >= 2 * before - 1


def test_a_slice_holds_what_the_real_one_would(parts: Any) -> None:
    _, side, real, _ = parts
    for network in (side, real):
        network.keep(side.target, 0, 1)
    assert {name.removeprefix("real.") for name in side.state_dict()} == set(real.state_dict())


def test_cards_and_evaluation_are_checked() -> None:
    config = RunConfig.build({"model": "m", "train": "t", "emulate": "jetson"})
    with pytest.raises(BadInput, match="card 'jetson' is not known; known: jetson-nano"):
        emulating(Registry(), config)
    with pytest.raises(BadInput, match="--eval"):
        emulating(Registry(), config.model_copy(update={"emulate": "jetson-nano", "eval": "e"}))
    assert emulating(registry := Registry(), config.model_copy(update={"emulate": None})) is registry
