"""Plans of all schedulers beside each other."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.contracts.cluster import Link
from pac_core.planning.proposal import propose
from pac_core.planning.work import Work
from pac_core.registry import Registry
from pac_core.testing.scheduler import JOB, STREAMS, a_cluster, a_profile

PROFILE = a_profile((replace(STREAMS["one"][0], layers=4),))
WORK = Work.of_run(96, 3)
REGISTRY = Registry()


@given(
    st.lists(st.sampled_from([1.0, 2.0, 8.0, 60.0]), min_size=2, max_size=3),
    st.sampled_from([1e6, 1e7, 1e8]),
    st.sampled_from([None, "pac", "pipeline"]),
)
@settings(deadline=None, max_examples=12)
def test_a_faster_network_or_one_device_more_never_makes_the_proposed_run_slower(
    speeds: list[float], rate: float, scheduler: str | None
) -> None:
    slow = replace(a_cluster(*speeds), links={}, default=Link(rate, 1e-3))
    quick = replace(a_cluster(*speeds, 500.0), links={}, default=Link(10 * rate, 1e-3))
    as_it_is = propose(PROFILE, slow, JOB, WORK, REGISTRY, scheduler)
    changed = propose(PROFILE, quick, JOB, WORK, REGISTRY, scheduler, as_it_is.chosen.plan)
    assert changed.chosen.seconds <= as_it_is.chosen.seconds * (1 + 1e-9)


def test_a_plan_whose_devices_have_gone_does_not_count() -> None:
    before = propose(PROFILE, a_cluster(1.0, 1.0), JOB, WORK, REGISTRY, "pipeline").chosen.plan
    found = propose(PROFILE, a_cluster(1.0), JOB, WORK, REGISTRY, None, before)
    assert found.chosen.plan.devices == ("d0",)
