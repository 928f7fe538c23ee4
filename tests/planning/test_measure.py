"""A device measures a few layers with random weights, and its paces predict what it has not measured."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pac_core.cache import ActivationCache
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.cluster import Job, Profile
from pac_core.errors import BadInput, RunFailed
from pac_core.examples import Task, TaskKind
from pac_core.planning.cost import costs
from pac_core.planning.fit import fit_device
from pac_core.planning.measure import Measured, Request, measure, measure_passes, store_rates
from pac_core.planning.probe import Probe, Seconds
from pac_core.planning.profile import analytic_profile
from pac_core.planning.sample_model import sample_examples, sample_model
from pac_core.registry import Registry
from pac_core.tasks import target_stream
from pac_core.testing.tiny import tiny_model

ADAPTER = AdapterConfig(reduction=4)
TASKS: dict[str, TaskKind] = {"bert": "classification", "t5": "seq2seq", "llama": "causal-lm", "gpt2": "regression"}


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """The ``config.json`` of a tiny model."""
    found: dict[str, Any] = json.loads(tiny_model(family).config.to_json_string(use_diff=False))
    return {**found, **changes}


def task_of(family: str) -> Task:
    return Task(TASKS[family], ("a", "b") if TASKS[family] == "classification" else ())


@pytest.mark.parametrize("family", TASKS)
def test_a_sample_has_few_layers_of_the_models_shapes(family: str) -> None:
    names = {"t5": {"num_layers": 5, "num_decoder_layers": 7}, "gpt2": {"n_layer": 6}}
    config = config_of(family, **names.get(family, {"num_hidden_layers": 6}), vocab_size=50000, eos_token_id=49999)
    model = sample_model(config, ADAPTER, task_of(family), torch.float32, Registry())
    assert {stream.layers for stream in model.info.streams} == {3}
    assert (model.info.hidden_size, model.info.vocab_size) == (32, 8192)
    batch = sample_examples(model, 3, 8)
    loss = model.loss(batch, model.reader.read(batch))
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.learnt(batch) > 0
    assert any(p.grad is not None for p in model.parameters())


def test_layers_of_several_kinds_are_cut_with_their_names() -> None:
    kinds = ["full_attention", "sliding_attention"] * 4
    model = sample_model(
        {**config_of("llama", num_hidden_layers=8), "model_type": "qwen3", "layer_types": kinds, "head_dim": 8},
        ADAPTER,
        Task("causal-lm"),
        torch.float32,
        Registry(),
    )
    assert model.info.streams[0].layers == 3


@pytest.mark.parametrize(
    ("changes", "named"), [({"hidden_size": "wide"}, "does not accept"), ({"model_type": "nobodys"}, "nobodys")]
)
def test_configurations_that_cannot_be_used_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        sample_model(config_of("bert", **changes), ADAPTER, task_of("bert"), torch.float32, Registry())


def a_request(family: str, points: tuple[tuple[int, int], ...], seconds: float, **changes: Any) -> Request:
    wide = {"hidden_size": 128, "intermediate_size": 512} if family in ("bert", "llama") else {}
    return Request(
        config=config_of(family, **wide),
        layers={ENCODER: 12, DECODER: 12},
        dtype="float32",
        adapter=ADAPTER,
        task=TASKS[family],
        points=points,
        seconds=seconds,
        **changes,
    )


def profile_of(request: Request) -> Profile:
    """Costs of the sample of a request's model."""
    task = request.trained
    info = sample_model(request.config, request.adapter, task, torch.float32, Registry()).info
    return analytic_profile(info, request.adapter, target_stream(info, task), head=task.generates)


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_what_was_not_measured_is_predicted(family: str, tmp_path: Path) -> None:
    """One size is left out of the fit. Loose, since machines that run tests do other things as well."""
    request = a_request(family, ((1, 8), (4, 8), (2, 32), (8, 16), (4, 32), (8, 32)), 60.0)
    found = measure(request, tmp_path / "cache", Registry())
    assert not list((tmp_path / "cache").iterdir())
    held_out = [point for one in found.passes for point in one.points if (point.rows, point.tokens) == (8, 16)]
    fitted = [replace(one, points=tuple(p for p in one.points if p not in held_out)) for one in found.passes]
    sample = profile_of(request)
    device, fits = fit_device("d", replace(found, passes=tuple(fitted)), sample, 1 << 30)
    assert {fit.stream for fit in fits} == ({ENCODER, DECODER} if family == "t5" else {*sample.layers})
    assert device.paces is not None
    sizes = {stream: len(layers) for stream, layers in sample.layers.items()}
    truth = {
        (one.stream, one.name): next(p.seconds for p in one.points if (p.rows, p.tokens) == (8, 16))
        for one in found.passes
    }
    layers = sum(sizes[stream] * truth[stream, name] for stream, name in truth if not name.startswith("head"))
    heads = sum(seconds for (_, name), seconds in truth.items() if name.startswith("head"))
    work, alone = costs(sample, Job(8, 8, 16.0, 16)), replace(device, disk_bytes_per_s=None, write_bytes_per_s=None)
    predicted = work.seconds(alone, 0, work.layers, 8).both + work.cached_seconds(alone, 8)
    assert 0.25 < predicted / (layers + 2 * heads) < 4


def steps(seconds: Callable[[int, int], float], calls: list[tuple[int, int]]) -> Callable[[int, int], Seconds]:
    def run(rows: int, tokens: int) -> Seconds:
        calls.append((rows, tokens))
        time.sleep(seconds(rows, tokens))
        return {(ENCODER, "backbone"): float(len(calls))}

    return run


def test_sizes_that_there_is_no_time_for_are_left_out() -> None:
    calls: list[tuple[int, int]] = []
    points = [(1, 1), (1, 2), (1, 4), (1, 1000)]
    began = time.monotonic()
    (found,) = measure_passes(steps(lambda rows, tokens: 0.005 * tokens, calls), points, 0.5)
    assert time.monotonic() - began < 2
    assert (1, 1000) not in calls
    assert [(point.rows, point.tokens) for point in found.points] == points[: len(found.points)]
    assert len(found.points) >= 1


def test_one_size_is_measured_however_little_time_there_is() -> None:
    (found,) = measure_passes(steps(lambda rows, tokens: 0.0, []), [(1, 1), (8, 1000)], 1e-9)
    assert [(point.rows, point.tokens) for point in found.points] == [(1, 1)]


def test_the_first_run_of_all_and_of_each_size_warms_up() -> None:
    def run(rows: int, tokens: int) -> Seconds:
        taken = 100.0 if (rows, tokens) not in seen or not rest else 1.0
        rest.append(0) if seen else None
        seen.append((rows, tokens))
        return {(ENCODER, "backbone"): taken}

    seen: list[tuple[int, int]] = []
    rest: list[int] = []
    (found,) = measure_passes(run, [(1, 1), (1, 2)], 0.2)
    assert [point.seconds for point in found.points] == [1.0, 1.0]


@pytest.mark.parametrize("store", ["disk", "memory", "lz4+disk"])
def test_entries_of_the_whole_model_go_through_the_store(store: str, tmp_path: Path) -> None:
    request = a_request("bert", ((1, 16), (2, 16)), 1.0, store=store, cache_dtype="int8")
    model = sample_model(request.config, ADAPTER, request.trained, torch.float32, Registry())
    write, read = store_rates(request, model.info, ENCODER, tmp_path, Registry())
    assert 1e4 < write < 1e12
    assert 1e4 < read < 1e12
    assert not list(tmp_path.iterdir())


def test_measurements_are_read_as_they_were_sent() -> None:
    found = Measured((), 1e-3, 1e9, 2e8, 4e8, 1 << 33, 2, 9.0)
    assert Measured.from_text(found.to_text(), "kitchen") == found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"read_bytes_per_s": 0.0}, "read_bytes_per_s"),
        ({"threads": "many"}, "threads"),
        ({"more": 1}, "more"),
        ({"passes": [{"stream": "encoder", "name": "cooking", "points": []}]}, "passes.0.name"),
    ],
)
def test_a_stranger_measurement_is_named_in_one_line(change: dict[str, Any], named: str) -> None:
    text = json.dumps({**json.loads(Measured((), 1e-3, 1e9, 2e8, 4e8, 1, 2, 9.0).to_text()), **change})
    with pytest.raises(RunFailed, match=rf"device 'kitchen'.*{named}"):
        Measured.from_text(text, "kitchen")


def test_activations_that_a_layer_keeps_are_about_those_of_the_profile() -> None:
    """Of side width and the tap, as autograd keeps them; what attention keeps of its scores is counted elsewhere."""
    config = config_of("bert", hidden_size=256, intermediate_size=1024, max_position_embeddings=128)
    model = sample_model(config, ADAPTER, task_of("bert"), torch.float32, Registry())
    profile = analytic_profile(model.info, ADAPTER, ENCODER, head=False)
    with ActivationCache.open("memory", dtype="float32") as cache:
        probe = Probe(model, {ENCODER: 3}, cache)
        batch = sample_examples(model, 4, 16)
        taps = model.reader.read(batch)[ENCODER]
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            state = model.side.enter(ENCODER, taps.values[0], taps.rows)
            kept.clear()
            model.side.layer(ENCODER, 1, taps.values[1].clone(), state, taps.rows)
        assert probe.model is model
    predicted = 4 * 16 * profile.layers[ENCODER][0].kept_bytes
    assert 0.6 < sum(kept.values()) / predicted < 1.6
