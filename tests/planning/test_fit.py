"""Paces are found again from the seconds that they give, and devices predict what they were not fitted to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.contracts.cluster import Job, LayerProfile, Pace, Profile
from pac_core.planning.cost import FORWARD, costs
from pac_core.planning.fit import FASTEST, Timed, fit_device, fit_pace
from pac_core.planning.measure import Measured, MeasuredPass
from pac_core.planning.probe import PassName
from pac_core.planning.profile_file import Point
from pac_core.testing.scheduler import LAYER

SIZES = [1e6 * 4**i for i in range(8)]

PACES: dict[PassName, Pace] = {
    "backbone": Pace(4e9, 2e-3),
    "side forward": Pace(1e9, 1e-3),
    "side backward": Pace(2e9, 3e-3),
    "cached": Pace(1.5e9, 2e-3),
    "head forward": Pace(3e9, 1e-4),
    "head backward": Pace(5e9, 2e-4),
}


@given(st.floats(1e7, 1e12), st.floats(0.0, 0.1))
@settings(max_examples=50, deadline=None)
def test_what_a_pace_gives_is_fitted_by_it(flops: float, layer_s: float) -> None:
    given_pace = Pace(flops, layer_s)
    found = fit_pace([Timed(size, given_pace.seconds(size)) for size in SIZES])
    assert found.largest_error < 1e-6
    assert found.pace.seconds(3e7) == pytest.approx(given_pace.seconds(3e7), rel=1e-5)


@given(st.lists(st.tuples(st.floats(1e3, 1e10), st.floats(1e-6, 1e2)), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_whatever_was_measured_neither_part_is_negative(points: list[tuple[float, float]]) -> None:
    found = fit_pace([Timed(*point) for point in points])
    assert found.pace.layer_s >= 0
    assert 0 < found.pace.flops <= FASTEST
    assert 0 <= found.median_error <= found.largest_error


def test_some_bad_moments_do_not_spoil_a_pace() -> None:
    rng, pace = np.random.default_rng(0), Pace(1e9, 5e-3)
    points = [Timed(size, pace.seconds(size) * rng.uniform(0.97, 1.03)) for size in np.geomspace(1e6, 1e9, 15)]
    points[4] = replace(points[4], seconds=4 * points[4].seconds)
    points[11] = replace(points[11], seconds=3 * points[11].seconds)
    found = fit_pace(points)
    assert found.pace.flops == pytest.approx(1e9, rel=0.1)
    assert found.pace.layer_s == pytest.approx(5e-3, rel=0.1)
    assert found.median_error < 0.04
    assert found.largest_error > 0.5


def measured(profile: Profile) -> Measured:
    """What a device of `PACES` measures, by the operations that the cost model counts."""
    layer: LayerProfile = profile.layers[ENCODER][0]
    passes = []
    for name, pace in PACES.items():
        points = []
        for rows, tokens in ((1, 16), (4, 32), (8, 64)):
            side = rows * tokens * layer.side_flops
            operations = {
                "backbone": rows * tokens * (layer.flops + layer.pair_flops * tokens),
                "side forward": FORWARD * side,
                "side backward": (1 - FORWARD) * side,
                "cached": side,
            }.get(name, rows * tokens * profile.head_flops)
            points.append(Point(rows, tokens, pace.seconds(operations)))
        passes.append(MeasuredPass(ENCODER, name, tuple(points)))
    return Measured(tuple(passes), 1e-3, 1e9, 2e8, 4e8, 1 << 33, 2, 9.0)


def test_a_devices_profile_predicts_what_was_measured() -> None:
    """The sample has fewer layers than the model; the profile is of one layer."""
    sample = Profile({ENCODER: (LAYER,) * 2}, {}, head_flops=1e5)
    device, fits = fit_device("d", measured(sample), sample, 1 << 30)
    assert (device.name, device.memory_bytes, device.disk_bytes_per_s) == ("d", 1 << 30, 4e8)
    assert all(fit.largest_error < 1e-6 for fit in fits)
    whole = costs(replace(sample, layers={ENCODER: (LAYER,) * 12}), Job(16, 4, 30.0, 64))
    side, tokens = 4 * 30 * LAYER.side_flops, 4 * 30
    forward = 12 * PACES["backbone"].seconds(tokens * (LAYER.flops + LAYER.pair_flops * 30))
    forward += 12 * PACES["side forward"].seconds(FORWARD * side) + PACES["head forward"].seconds(tokens * 1e5)
    backward = 12 * PACES["side backward"].seconds((1 - FORWARD) * side) + PACES["head backward"].seconds(tokens * 1e5)
    written = 12 * tokens * LAYER.tap_bytes / 2e8
    found = whole.seconds(device, 0, 12, 4)
    assert found.forward == pytest.approx(forward + written)
    assert found.backward == pytest.approx(backward)
    cached = 12 * PACES["cached"].seconds(side) + 12 * tokens * LAYER.tap_bytes / 4e8
    cached += PACES["head forward"].seconds(tokens * 1e5) + PACES["head backward"].seconds(tokens * 1e5)
    assert whole.cached_seconds(device, 4) == pytest.approx(cached)


def test_streams_that_the_side_network_does_not_read_take_no_time_beside_the_backbones() -> None:
    unread = replace(LAYER, side_flops=0.0, gradient_bytes=0)
    sample = Profile({ENCODER: (unread,), DECODER: (LAYER,)}, {}, head_flops=1e5)
    decoder = measured(Profile({ENCODER: (LAYER,)}, {}, head_flops=1e5)).passes
    passes = (decoder[0], *(replace(one, stream=DECODER) for one in decoder))
    found = replace(measured(Profile({ENCODER: (LAYER,)}, {}, head_flops=1e5)), passes=passes)
    device, _ = fit_device("d", found, sample, 1)
    of_encoder = costs(sample, Job(1, 1, 16.0, 16)).seconds(device, 0, 1, 1)
    assert of_encoder.backward == 0.0
    assert of_encoder.forward > 0.0
