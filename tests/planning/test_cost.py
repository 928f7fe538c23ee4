"""The cost model against sums by hand."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.cluster import Cluster, DeviceProfile, Link, Pace, Paces, Profile, StreamPaces
from pac_core.contracts.scheduler import StagePlan
from pac_core.errors import BadInput
from pac_core.planning.cards import CARDS, card
from pac_core.planning.cost import all_reduce_s, costs, places, slice_of, transfer_s, update_s
from pac_core.planning.memory import stage_bytes
from pac_core.planning.slowness import Slowness
from pac_core.testing.scheduler import JOB, LAYER, MIB, STREAMS, a_profile

DEVICE = DeviceProfile("d", 1e9, 1 << 40, backward_flops=2e9, layer_s=0.01, disk_bytes_per_s=1e6)


def test_a_slice_takes_its_layers_arithmetic_at_the_devices_rates() -> None:
    found = costs(a_profile(STREAMS["one"]), JOB)
    forward = 3 * 30 * (2e6 + 1e3 * 30) + 3 * 30 * 5e5 / 3
    seconds = found.seconds(DEVICE, 2, 5, rows=4)
    assert seconds.forward == pytest.approx(3 * 0.01 + 4 * forward / 1e9)
    assert seconds.backward == pytest.approx(3 * 0.01 + 4 * 3 * 30 * 5e5 * 2 / 3 / 2e9)
    assert seconds.both == seconds.forward + seconds.backward


def test_a_frozen_layer_without_side_network_has_no_backward_pass() -> None:
    frozen = Profile({"one": (replace(LAYER, side_flops=0.0),) * 2}, {})
    assert costs(frozen, JOB).seconds(DEVICE, 0, 2, 4).backward == 0.0


@pytest.mark.parametrize("passes", [1.0, 2.0])
def test_training_the_backbone_costs_backward_passes_through_it(passes: float) -> None:
    trained = Profile({"one": (replace(LAYER, side_flops=0.0, back_passes=passes),)}, {})
    found = costs(trained, JOB)
    assert found.backward_flops[-1] == passes * found.forward_flops[-1]


def test_a_decoder_works_on_its_own_tokens_and_on_those_it_attends_to() -> None:
    cross = replace(LAYER, cross_flops=7e5, cross_kept_bytes=100)
    profile = Profile({ENCODER: (LAYER,), DECODER: (cross,)}, {})
    job = replace(JOB, lengths={DECODER: 2})
    found = costs(profile, job)
    own = 2 * (2e6 + 1e3 * 2) + 2 * 5e5 / 3
    assert slice_of(found.forward_flops, 1, 2) == pytest.approx(own + 30 * 7e5)
    assert slice_of(found.kept_bytes, 1, 2) == 2 * 4096 + 64 * 100


def test_past_a_cut_in_the_decoder_go_the_encoders_states_too() -> None:
    found = costs(a_profile(STREAMS["two"]), JOB)
    assert found.crossings[0] == found.crossings[-1] == type(found.crossings[0])(0.0, 0.0)
    assert (found.crossings[3].forward, found.crossings[3].backward) == (30 * (1024 + 256), 30 * 256)
    assert found.crossings[5] == found.crossings[3]  # where the encoder ends
    assert (found.crossings[7].forward, found.crossings[7].backward) == (2 * 30 * (1024 + 256), 2 * 30 * 256)


@given(st.data())
def test_bytes_of_a_stage_are_those_of_its_layers_tables_and_activations(data: Any) -> None:
    profile = a_profile(STREAMS["two"])
    first = data.draw(st.integers(0, 11))
    last = data.draw(st.integers(first + 1, 12))
    rows, in_flight = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    slots = profile.chain()[first:last]
    layers: dict[str, tuple[int, int]] = {}
    for stream, number in slots:
        layers[stream] = (layers.get(stream, (number, 0))[0], number + 1)
    held = sum(profile.layers[s][i].weight_bytes + profile.layers[s][i].side_bytes for s, i in slots)
    tables = 16 * MIB * (sum(i == 0 for _, i in slots) + (last == 12))
    assert places(profile, StagePlan(layers, ("d",), (1,))) == (first, last)
    kept = rows * in_flight * JOB.max_length * 4096 * len(slots)
    assert stage_bytes(profile, layers, JOB, rows, in_flight) == held + tables + kept


def test_gradients_go_around_a_ring_as_slow_as_its_slowest_link() -> None:
    devices = tuple(DeviceProfile(name, 1e9, MIB) for name in "abc")
    cluster = Cluster(devices, {("b", "c"): Link(4e6, 0.5)}, Link(8e6, 0.1))
    assert all_reduce_s(cluster, ["a", "b"], 1e6) == pytest.approx(2 * (0.1 + 0.5))
    assert all_reduce_s(cluster, ["a", "b", "c"], 3e6) == pytest.approx(4 * (0.5 + 2.0))
    assert all_reduce_s(cluster, ["a"], 1e6) == all_reduce_s(cluster, ["a", "b"], 0) == 0.0
    assert all_reduce_s(replace(cluster, shared=True), ["a", "b"], 1e6) == pytest.approx(2 * (0.1 + 1.0))
    assert transfer_s(Link(8e6, 0.1), 2e6) == pytest.approx(2.1)


def test_cached_epochs_read_entries_and_run_the_side_network() -> None:
    found = costs(a_profile(STREAMS["one"]), JOB)
    read = 12 * 30 * 1024 / 1e6
    work = 12 * 30 * 5e5
    expected = 4 * (read + work / 3 / 1e9 + work * 2 / 3 / 2e9) + 2 * 12 * 0.01
    assert found.cached_seconds(DEVICE, 4) == pytest.approx(expected)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_where_its_numbers_come_from_and_gives_a_device(name: str) -> None:
    found = card(name)
    device = found.device("mine")
    assert len(found.source) > 20
    assert found.basis == "assumed" or found.efficiency != 0.5
    assert 0 < device.flops < found.peak_flops
    assert 0 < device.memory_bytes < found.memory_bytes


def test_an_unknown_card_is_named_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="card 'jetson' is not known; known: jetson-nano"):
        card("jetson")


PACED = replace(
    DEVICE,
    write_bytes_per_s=1e6,
    paces=Paces(
        (
            StreamPaces(ENCODER, Pace(1e9, 0.01), Pace(2e9, 0.02), Pace(3e9, 0.03), Pace(4e9, 0.04)),
            StreamPaces(DECODER, Pace(5e9, 0.05), Pace(6e9, 0.06), Pace(7e9, 0.07), Pace(8e9, 0.08)),
        ),
        Pace(1e8, 0.5),
        Pace(2e8, 0.25),
    ),
    step_s=0.125,
    update_bytes_per_s=1e9,
)
"""A device that was measured with a model of two streams."""


def test_measured_paces_count_for_each_stream_and_the_head_once() -> None:
    profile = replace(a_profile(STREAMS["two"]), head_flops=1e4)
    found = costs(profile, JOB)
    side, tokens = 4 * 30 * 5e5, 4 * 30
    forward = 0.01 + tokens * (2e6 + 1e3 * 30) / 1e9 + 0.02 + side / 3 / 2e9
    forward += 7 * (0.05 + tokens * (3e6 + 1e3 * 30) / 5e9 + 0.06 + side / 3 / 6e9)
    seconds = found.seconds(PACED, 4, 12, 4)
    assert seconds.forward == pytest.approx(forward + 0.5 + tokens * 1e4 / 1e8 + 8 * tokens * 1024 / 1e6)
    backward = 0.03 + side * 2 / 3 / 3e9 + 7 * (0.07 + side * 2 / 3 / 7e9) + 0.25 + tokens * 1e4 / 2e8
    assert seconds.backward == pytest.approx(backward)
    assert found.seconds(PACED, 4, 11, 4).forward < seconds.forward - 0.5  # the head is behind the last layer


@pytest.mark.parametrize("device", [DEVICE, PACED])
@given(rows=st.floats(0.25, 64), head=st.sampled_from([0.0, 1e6]))
@settings(max_examples=20, deadline=None)
def test_all_slices_at_once_take_what_each_takes(device: DeviceProfile, rows: float, head: float) -> None:
    found = costs(replace(a_profile(STREAMS["two"]), head_flops=head), JOB)
    forward, backward = found.seconds_of_slices(device, rows)
    for first in range(found.layers):
        for last in range(first + 1, found.layers + 1):
            alone = found.seconds(device, first, last, rows)
            assert (forward[first, last], backward[first, last]) == pytest.approx((alone.forward, alone.backward))


def test_an_optimiser_step_takes_time_where_it_was_measured() -> None:
    assert update_s(DEVICE, 2e8) == 0.0
    assert update_s(PACED, 2e8) == pytest.approx(0.125 + 0.2)


def test_a_device_that_is_slowed_takes_as_many_times_as_long() -> None:
    found = costs(replace(a_profile(STREAMS["two"]), head_flops=1e6), JOB)
    slow = Slowness({"d": 3.0}).slowed(Cluster((PACED,))).devices[0]
    assert found.seconds(slow, 2, 12, 4).both == pytest.approx(3 * found.seconds(PACED, 2, 12, 4).both)
    assert found.side_seconds(slow, 4).both == pytest.approx(3 * found.side_seconds(PACED, 4).both)
    assert update_s(slow, 1e8) == pytest.approx(3 * update_s(PACED, 1e8))
