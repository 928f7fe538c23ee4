"""Devices of one machine are measured at once, with the links between them; what they answer is checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from pac_core.config import RunConfig
from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.cluster import Job, Link
from pac_core.contracts.message import Message
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput, RunFailed
from pac_core.planning.make import plan
from pac_core.planning.measure import Measured, Request
from pac_core.planning.profile_file import ProfileFile, read_profile, write_profile
from pac_core.planning.simulate import Work, simulate
from pac_core.profiler import NO_DATA, Profiler, grid
from pac_core.registry import Registry
from pac_core.runtime import profiling
from pac_core.runtime.profiling import ANSWER, REQUEST, lead, measure_links, take_part
from pac_core.testing.threads import Exchange, in_threads
from pac_core.testing.tiny import tiny_model


def configuration(folder: Path, family: str = "bert", **changes: Any) -> RunConfig:
    """A run of a model of which only the configuration is there."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(tiny_model(family).config.to_json_string(use_diff=False))
    tree = {
        "model": str(folder / "model"),
        "train": NO_DATA,
        "max_length": 32,
        "dtype": "float32",
        "adapter": {"reduction": 4},
        "cache": {"dir": str(folder / "cache")},
        **changes,
    }
    return RunConfig.build(tree)


def check(found: ProfileFile, devices: int) -> None:
    assert len(found.cluster.devices) == devices
    names = [device.name for device in found.cluster.devices]
    assert {frozenset(pair) for pair in found.cluster.links} == {
        frozenset((one, other)) for one in names for other in names if one < other
    }
    for link in found.cluster.links.values():
        assert 1e5 < link.bits_per_second < 1e13
        assert 0 <= link.latency_s < 1
    for device in found.cluster.devices:
        assert device.paces is not None
        assert device.disk_bytes_per_s
        assert device.write_bytes_per_s
        assert device.memory_bytes > 1 << 20
        assert {fit.name for fit in found.fits[device.name]} >= {"backbone", "side forward", "side backward", "cached"}


def test_two_processes_are_measured_and_planned_for(tmp_path: Path) -> None:
    said: list[str] = []
    found = Profiler(configuration(tmp_path, devices="2"), 1.0, Registry(), said.append).run()
    check(found, 2)
    assert found.job == Job(32, None, 32.0, 32)
    assert len(found.profile.layers[ENCODER]) == 3
    assert any("2 devices at once" in line for line in said)
    write_profile(tmp_path / "profile.json", found)
    read = read_profile(tmp_path / "profile.json")
    assert read == found
    for scheduler in ("pipeline", "pac", "data-parallel", "exhaustive"):
        made = plan(read.profile, read.cluster, read.job or Job(1, 1, 1, 1), scheduler)
        timeline = simulate(made, read.profile, read.cluster, read.job, Work(64, 3))
        assert 0 < timeline.seconds < 3600


def test_one_device_is_measured_in_this_process(tmp_path: Path) -> None:
    found = Profiler(configuration(tmp_path, "gpt2"), 0.5, Registry()).run()
    check(found, 1)
    assert not list((tmp_path / "cache").iterdir())
    assert found.profile.head_bytes > 0  # a language model's task is to write


def test_the_grid_ends_with_the_longest_samples_and_grows() -> None:
    assert grid(100) == tuple(sorted(grid(100), key=lambda point: point[0] * point[1]))
    assert {tokens for _, tokens in grid(100)} == {16, 32, 64, 100}
    assert grid(8)[0] == (1, 8)
    assert max(rows * tokens for rows, tokens in grid(5000)) == 5000


@pytest.mark.parametrize(
    ("change", "named"), [({"adapter": {"reduction": 5}}, "reduction"), ({"adapter": {"name": "nobodys"}}, "nobodys")]
)
def test_what_cannot_be_built_is_refused_before_devices_are_started(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadInput, match=named):
        Profiler(configuration(tmp_path, devices="2", **change), 1.0, Registry()).run()


def test_each_pair_of_devices_is_measured_once() -> None:
    exchange = Exchange()
    found = in_threads(4, measure_links, exchange)
    assert [sorted(links) for links in found] == [[1, 2, 3], [2, 3], [3], []]
    assert all(isinstance(link, Link) for links in found for link in links.values())
    assert not exchange.waiting()


ANSWERED = Measured((), 1e-3, 1e9, 2e8, 4e8, 1 << 33, 1, 9.0).to_text()


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"measured": 3, "links": []}, "measured what cannot be"),
        ({"measured": ANSWERED, "links": [[2, -1.0, 0.0]]}, "links that cannot be"),
        ({"measured": ANSWERED, "links": [[2, float("inf"), 0.0]]}, "links that cannot be"),
        ({"measured": ANSWERED, "links": [[0, 1e9, 0.0]]}, "other devices than those after it"),
        ({"measured": ANSWERED}, "links that cannot be"),
    ],
)
def test_answers_that_cannot_be_are_named(header: dict[str, Any], named: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(profiling, "_measured", lambda *_: None)
    request = Request(
        config={}, layers={}, dtype="float32", adapter={}, task="regression", points=((1, 1),), seconds=1.0
    )

    def device(transport: Transport) -> None:
        if transport.rank == 0:
            lead(transport, request, tmp_path, ["desk", "kitchen", "garage"], Registry(), lambda text: None)
        else:
            transport.irecv(0, REQUEST).wait()
            transport.isend(0, Message(ANSWER, header))

    with pytest.raises(RunFailed, match=f"device 'kitchen' has .*{named}"):
        in_threads(3, device)


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"config": {}, "seconds": 1e9})])
def test_requests_that_cannot_be_are_refused(text: str, tmp_path: Path) -> None:
    config = configuration(tmp_path)

    def device(transport: Transport) -> None:
        if transport.rank == 0:
            transport.isend(1, Message(REQUEST, {"request": text})).wait()
        else:
            take_part(transport, config, Registry())

    with pytest.raises(RunFailed, match="the leader asks for what cannot be measured"):
        in_threads(2, device)
