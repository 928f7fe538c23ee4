"""Timelines as text."""

from pac_core.contracts.cluster import Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.planning.show import chart, report
from pac_core.planning.simulate import simulate
from pac_core.spans import Span
from pac_core.testing.scheduler import JOB, LAYER, MIB, a_cluster


def test_each_part_shows_what_the_device_does_most_of_it() -> None:
    spans = [
        Span("a", "forward", 0, 0.0, 2.0),
        Span("a", "backward", 0, 4.4, 6.0),
        Span("bb", "reduce", None, 5.0, 8.0),
    ]
    assert chart(spans, 8.0, 8).splitlines()[:2] == ["a   FF..BB..", "bb  .....RRR"]


def test_what_is_missing_is_said_beside_the_device() -> None:
    plan = Plan(tuple(StagePlan({"one": (i, i + 1)}, (f"d{i}",), (4,)) for i in range(2)), 2)
    shown = report(simulate(plan, Profile({"one": (LAYER,) * 2}, {}), a_cluster(1.0, 1.0, memory_bytes=6 * MIB), JOB))
    assert "d0  0.01 of 0.01 GB, 0.00 GB are missing" in shown
    assert "d1  0.01 of 0.01 GB\n" in shown
