"""Throughput by number of devices."""

import pytest

from pac_core.contracts.cluster import Job
from pac_core.errors import BadInput, UnknownPlugin
from pac_core.planning.scaling import counts_of, scaled
from pac_core.planning.show import rates
from pac_core.planning.simulate import Work, simulate
from pac_core.planning.slowness import Slowness
from pac_core.registry import Registry
from pac_core.testing.scheduler import MIB, STREAMS, a_cluster, a_profile

PROFILE, JOB = a_profile(STREAMS["one"]), Job(24, None, 30.0, 64)

WORK = Work(480, 3)


def test_each_number_has_a_plan_of_its_own() -> None:
    cluster = a_cluster(*[1.0] * 6)
    one, two, six = scaled(PROFILE, cluster, JOB, "data-parallel", WORK, [1, 2, 6], Registry())
    assert [found.devices for found in (one, two, six)] == [1, 2, 6]
    assert 1.8 < two.first_rate / one.first_rate < 2.01
    assert 5 < six.first_rate / one.first_rate < 6.01
    assert one.timeline
    assert one.first_rate == pytest.approx(480 / one.timeline.phases[0].seconds)
    assert one.cached_rate == pytest.approx(960 / one.timeline.phases[2].seconds)
    assert six.timeline
    assert six.to_json()["groups"] == [6]
    again = simulate(six.timeline.plan, PROFILE, cluster, Job(24, six.timeline.plan.micro_batch_size, 30.0, 64), WORK)
    assert again.seconds == six.seconds


def test_what_does_not_fit_says_why() -> None:
    one, two = scaled(PROFILE, a_cluster(1.0, 1.0, memory_bytes=70 * MIB), JOB, "pipeline", WORK, [1, 2], Registry())
    assert one.timeline is None
    assert "are missing" in one.why
    assert one.to_json()["fits"] is False
    assert (one.first_rate, one.cached_rate, one.seconds) == (0.0, 0.0, 0.0)
    assert two.to_json()["fits"] is True
    lines = rates([one, two]).splitlines()
    assert lines[1].endswith(one.why)
    assert lines[2].split()[-1] == "1-1"


def test_without_a_cache_all_epochs_are_of_one_rate() -> None:
    (found,) = scaled(PROFILE, a_cluster(1.0), JOB, "single", Work(48, 3, caches=False), [1], Registry())
    assert found.first_rate == pytest.approx(144 / found.seconds)
    assert found.cached_rate == 0.0
    assert found.to_json()["cached_samples_per_second"] is None


def test_a_slow_device_counts_from_where_it_is_among_them() -> None:
    work = Work(480, 3, slowness=Slowness({"d1": 4.0}))
    plain = scaled(PROFILE, a_cluster(1.0, 1.0), JOB, "data-parallel", WORK, [1, 2], Registry())
    slow = scaled(PROFILE, a_cluster(1.0, 1.0), JOB, "data-parallel", work, [1, 2], Registry())
    assert slow[0].seconds == plain[0].seconds
    assert slow[1].seconds > 3 * plain[1].seconds
    with pytest.raises(BadInput, match="'d7' is to be slow"):
        scaled(PROFILE, a_cluster(1.0), JOB, "single", Work(48, slowness=Slowness({"d7": 4.0})), [1], Registry())


def test_an_unknown_scheduler_is_no_lack_of_memory() -> None:
    with pytest.raises(UnknownPlugin):
        scaled(PROFILE, a_cluster(1.0), JOB, "singel", WORK, [1], Registry())


@pytest.mark.parametrize(("text", "numbers"), [("8", [8]), ("1-4", [1, 2, 3, 4]), ("4,1,2-3,2", [1, 2, 3, 4])])
def test_numbers_of_devices(text: str, numbers: list[int]) -> None:
    assert counts_of(text) == numbers


@pytest.mark.parametrize("text", ["", "0", "4-2", "1-2-3", "a", "1,,2", "1001", "-3", "1-"])
def test_what_is_no_number_of_devices(text: str) -> None:
    with pytest.raises(BadInput, match="give numbers from 1 to 1000, such as 8, 1-8 or 1,2,4"):
        counts_of(text)
