"""Conformance of schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from pac_core.contracts.backbone import DECODER, ENCODER, Stream
from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, LayerProfile, Link, Profile
from pac_core.contracts.scheduler import Plan, Scheduler
from pac_core.errors import BadInput
from pac_core.planning.memory import stage_bytes

MIB = 1 << 20

LAYER = LayerProfile(
    flops=2e6,
    pair_flops=1e3,
    side_flops=5e5,
    weight_bytes=4 * MIB,
    side_bytes=MIB,
    hidden_bytes=1024,
    state_bytes=256,
    tap_bytes=1024,
    kept_bytes=4096,
)

JOB = Job(batch_size=24, micro_batch_size=8, mean_length=30.0, max_length=64)

STREAMS = {
    "one": (Stream(ENCODER, 12, False),),
    "two": (Stream(ENCODER, 5, False), Stream(DECODER, 7, True, True)),
}


def a_profile(streams: Sequence[Stream], first_cut: int = 1) -> Profile:
    """A model whose decoder layers cost half as much again as those of an encoder."""
    heavier = replace(LAYER, flops=3e6, weight_bytes=6 * MIB)
    layers = {s.name: (heavier if s.cross else LAYER,) * s.layers for s in streams}
    return Profile(layers, {s.name: 16 * MIB for s in streams}, 16 * MIB, first_cut)


def a_cluster(*speeds: float, memory_bytes: int = 4096 * MIB) -> Cluster:
    """Devices ``d0``, ``d1``, ... of these speeds in GFLOP/s."""
    devices = tuple(DeviceProfile(f"d{i}", speed * 1e9, memory_bytes) for i, speed in enumerate(speeds))
    return Cluster(devices, {("d0", "d1"): Link(1e9, 1e-4)})


class SchedulerSuite:
    """What every scheduler does. Subclass it, and name the factory and the clusters that it can plan for:

    Example:
        >>> class TestMine(SchedulerSuite):
        ...     factory = staticmethod(make_mine)
    """

    factory: ClassVar[Any]
    clusters: ClassVar[Sequence[tuple[float, ...]]] = ((1.0,), (1.0, 1.0), (3.0, 1.0, 2.0), (1.0, 8.0, 1.0, 1.0))

    def plan(self, profile: Profile, cluster: Cluster, job: Job = JOB) -> Plan:
        """The plan of a fresh scheduler."""
        scheduler: Scheduler = self.factory()
        return scheduler.plan(profile, cluster, job)

    @pytest.mark.parametrize("chain", STREAMS)
    def test_the_chain_is_run_once_and_in_order_by_devices_of_the_cluster(self, chain: str) -> None:
        for speeds in self.clusters:
            cluster = a_cluster(*speeds)
            plan = self.plan(a_profile(STREAMS[chain]), cluster)
            plan.check(STREAMS[chain])
            used = {device for stage in plan.stages for device in stage.devices}
            assert used <= {device.name for device in cluster.devices}

    def test_micro_batches_have_the_size_asked_for_and_make_up_the_batch(self) -> None:
        for size in (6, 8, 24):
            for speeds in self.clusters:
                job = replace(JOB, micro_batch_size=size)
                plan = self.plan(a_profile(STREAMS["one"]), a_cluster(*speeds), job)
                assert plan.micro_batch_size == size
                assert plan.micro_batches == -(-JOB.batch_size // size)

    def test_the_size_may_be_left_open(self) -> None:
        for speeds in self.clusters:
            plan = self.plan(a_profile(STREAMS["two"]), a_cluster(*speeds), replace(JOB, micro_batch_size=None))
            assert 1 <= plan.micro_batch_size <= JOB.batch_size
            assert plan.micro_batches == -(-JOB.batch_size // plan.micro_batch_size)

    @pytest.mark.parametrize("first_cut", [2, 3])
    def test_no_stage_begins_before_the_first_tap(self, first_cut: int) -> None:
        for speeds in self.clusters:
            plan = self.plan(a_profile(STREAMS["one"], first_cut), a_cluster(*speeds))
            starts = [first for stage in plan.stages for first, _ in stage.layers.values()]
            assert all(first == 0 or first >= first_cut for first in starts)

    def test_the_same_arguments_give_the_same_plan_which_json_keeps(self) -> None:
        for speeds in self.clusters:
            profile, cluster = a_profile(STREAMS["two"]), a_cluster(*speeds)
            plan = self.plan(profile, cluster)
            assert self.plan(profile, cluster) == plan
            assert Plan.from_json(plan.to_json()) == plan

    @pytest.mark.parametrize("memory_mib", [60, 90, 120, 160, 240])
    def test_a_plan_fits_the_memory_of_its_devices_or_there_is_none(self, memory_mib: int) -> None:
        profile = a_profile(STREAMS["two"])
        for speeds in self.clusters:
            cluster = a_cluster(*speeds, memory_bytes=memory_mib * MIB)
            try:
                plan = self.plan(profile, cluster)
            except BadInput:
                continue
            for number, stage in enumerate(plan.stages):
                for rows in stage.rows:
                    in_flight = plan.most_in_flight(number)
                    assert stage_bytes(profile, stage.layers, JOB, rows, in_flight) <= memory_mib * MIB

    def test_what_is_missing_is_told(self) -> None:
        for speeds in self.clusters:
            with pytest.raises(BadInput, match=r"device d\d, stage \d: .* [\d,]+ are missing") as refused:
                self.plan(a_profile(STREAMS["one"]), a_cluster(*speeds, memory_bytes=MIB))
            assert "\n" not in str(refused.value)
