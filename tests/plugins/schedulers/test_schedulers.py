"""The bundled schedulers: the suite, and what each is for."""

import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from pac_core.backbones import load_backbone
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import BackboneSource
from pac_core.contracts.cluster import Cluster, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput, UnknownPlugin
from pac_core.planning.cost import costs
from pac_core.planning.make import plan
from pac_core.planning.memory import stage_bytes
from pac_core.planning.profile import analytic_profile
from pac_core.registry import Registry
from pac_core.testing import SchedulerSuite
from pac_core.testing.scheduler import JOB, MIB, STREAMS, a_cluster, a_profile
from pac_core.testing.tiny import tiny_model
from pac_plugins.schedulers import make_data_parallel, make_pipeline, make_single
from pac_plugins.schedulers.parts import slices


class TestSingle(SchedulerSuite):
    factory = staticmethod(make_single)

    def test_the_fastest_device_with_room_is_taken(self) -> None:
        profile, cluster = a_profile(STREAMS["one"]), a_cluster(1.0, 5.0, 3.0)
        assert self.plan(profile, cluster).stages[0].devices == ("d1",)
        first, fastest, last = cluster.devices
        small = Cluster((first, replace(fastest, memory_bytes=MIB), last))
        assert self.plan(profile, small).stages[0].devices == ("d2",)


class TestDataParallel(SchedulerSuite):
    factory = staticmethod(make_data_parallel)

    def test_rows_are_in_proportion_to_speed_and_nobody_has_none(self) -> None:
        assert self.plan(a_profile(STREAMS["one"]), a_cluster(2.0, 1.0, 1.0)).stages[0].rows == (4, 2, 2)
        assert self.plan(a_profile(STREAMS["one"]), a_cluster(100.0, 1.0)).stages[0].rows == (7, 1)

    def test_fewer_rows_than_devices_are_refused(self) -> None:
        with pytest.raises(BadInput, match="1 rows cannot be shared by 2 devices"):
            self.plan(a_profile(STREAMS["one"]), a_cluster(1.0, 1.0), replace(JOB, micro_batch_size=1))


class TestPipeline(SchedulerSuite):
    factory = staticmethod(make_pipeline)

    @pytest.mark.parametrize("memory_mib", [70, 80, 100, 4096])
    @pytest.mark.parametrize("speeds", [(1.0, 1.0), (3.0, 1.0, 2.0), (1.0, 8.0, 1.0, 1.0)])
    def test_the_slowest_stage_is_as_fast_as_any_cuts_that_fit_make_it(
        self, speeds: tuple[float, ...], memory_mib: int
    ) -> None:
        profile, cluster = a_profile(STREAMS["two"]), a_cluster(*speeds, memory_bytes=memory_mib * MIB)
        for limit in range(len(speeds), 0, -1):
            ways = [slowest(profile, cluster, ends, limit) for ends in all_cuts(profile, len(speeds))]
            best = min((way for way in ways if way is not None), default=None)
            if best is not None:
                break
        else:
            with pytest.raises(BadInput, match="are missing"):
                self.plan(profile, cluster)
            return
        found = self.plan(profile, cluster)
        assert [stage.devices for stage in found.stages] == [(device.name,) for device in cluster.devices]
        assert slowest(profile, cluster, ends_of(profile, found), limit) == pytest.approx(best)
        assert max(map(found.most_in_flight, range(len(speeds)))) == min(limit, found.micro_batches)

    def test_more_devices_than_layers_are_refused(self) -> None:
        with pytest.raises(BadInput, match="12 layers cannot be cut into 13 stages"):
            self.plan(a_profile(STREAMS["one"]), a_cluster(*[1.0] * 13))


def all_cuts(profile: Profile, stages: int) -> list[tuple[int, ...]]:
    inner = costs(profile, JOB).cuts[1:-1]
    return [(*ends, len(profile.chain())) for ends in combinations(inner, stages - 1)]


def slowest(profile: Profile, cluster: Cluster, ends: tuple[int, ...], limit: int) -> float | None:
    """Seconds of the slowest stage; None if one does not fit with ``limit`` micro-batches in flight."""
    seconds = 0.0
    for stage, (first, last) in enumerate(zip((0, *ends), ends)):
        device = cluster.devices[stage]
        layers = slices(profile.chain()[first:last])
        in_flight = min(len(ends) - stage, -(-JOB.batch_size // JOB.micro_batch_size), limit)
        if stage_bytes(profile, layers, JOB, JOB.micro_batch_size or 0, in_flight) > device.memory_bytes:
            return None
        seconds = max(seconds, costs(profile, JOB).seconds(device, first, last, JOB.micro_batch_size or 0).both)
    return seconds


def ends_of(profile: Profile, found: Plan) -> tuple[int, ...]:
    counts = [sum(last - first for first, last in stage.layers.values()) for stage in found.stages]
    return tuple(sum(counts[: i + 1]) for i in range(len(counts)))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart"])
def test_the_analytic_profile_counts_the_weights_of_each_layer(family: str) -> None:
    """Matrices alone: what it leaves out are vectors; shared key and value heads count in full."""
    backbone = load_backbone(BackboneSource(model=tiny_model(family, dtype=torch.float32)), Registry())
    target = backbone.info.streams[-1].name
    profile = analytic_profile(backbone.info, AdapterConfig(reduction=4), target, head=family != "bert")
    for stream, layers in profile.layers.items():
        for number, layer in enumerate(layers):
            w = backbone.layer_weights(stream, number)
            attentions = [a for a in (w.attention, w.cross) if a is not None]
            matrices = [m for a in attentions for m in (a.query, a.key, a.value, a.output)]
            matrices += [m for m in (w.up, w.gate, w.down) if m is not None]
            counted = 4 * sum(m.numel() for m in matrices)
            assert layer.weight_bytes == pytest.approx(counted, rel=0.25 if family == "llama" else 0.0)
            assert layer.flops + layer.cross_flops == layer.weight_bytes / 2
    assert profile.head_bytes == (0 if family == "bert" else 4 * 64 * 32)


def test_plans_are_made_by_name() -> None:
    made = plan(a_profile(STREAMS["one"]), a_cluster(1.0, 1.0), JOB, "pipeline")
    assert (len(made.stages), made.scheduler) == (2, "pipeline")
    with pytest.raises(UnknownPlugin, match="did you mean 'pipeline'"):
        plan(a_profile(STREAMS["one"]), a_cluster(1.0), JOB, "pipline")


@pytest.mark.parametrize("make", [make_single, make_data_parallel, make_pipeline])
def test_the_change_that_is_told_is_one_with_which_it_fits(make: Any) -> None:
    profile, job = a_profile(STREAMS["one"]), replace(JOB, micro_batch_size=8)
    cluster = a_cluster(1.0, memory_bytes=60 * MIB)
    with pytest.raises(BadInput, match=r"are missing; .* would fit") as refused:
        make().plan(profile, cluster, replace(job, micro_batch_size=1))
    (more,) = re.findall(r"; ([\d,]+) MiB more on 'd0' would fit", str(refused.value))
    room = (60 + int(more.replace(",", ""))) * MIB
    alone = replace(job, micro_batch_size=1)
    assert make().plan(profile, a_cluster(1.0, memory_bytes=room), alone).size == 1
    with pytest.raises(BadInput):
        make().plan(profile, a_cluster(1.0, memory_bytes=room - MIB), alone)
    with pytest.raises(BadInput, match=r"; a micro-batch of \d+ rows? would fit"):
        make().plan(profile, a_cluster(1.0, memory_bytes=room), replace(job, micro_batch_size=24))
