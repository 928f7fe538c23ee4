"""Plans in runs: every device has its place, whatever its rank."""

from dataclasses import replace
from itertools import permutations

import pytest

from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput
from pac_core.runtime.ranks import ranked
from pac_core.runtime.timeline import gather_spans
from pac_core.spans import Span
from pac_core.testing.threads import in_threads

PLAN = Plan((StagePlan({ENCODER: (0, 2)}, ("a", "b"), (3, 1)), StagePlan({ENCODER: (2, 6)}, ("c",), (4,))), 5)


@pytest.mark.parametrize("names", list(permutations("abc")), ids="".join)
def test_a_device_has_its_place_whatever_its_rank(names: tuple[str, ...]) -> None:
    plan = ranked(PLAN, names)
    assert plan.devices == names
    assert plan.to_json() == PLAN.to_json()
    for rank, name in enumerate(names):
        stage, place = plan.place(rank)
        assert PLAN.stages[stage].devices[place] == name
        assert plan.group(stage)[place] == rank
    assert replace(plan, micro_batches=9).devices == names


@pytest.mark.parametrize("names", ["ab", "abd", "abcd", "aabc"])
def test_other_devices_are_refused(names: str) -> None:
    with pytest.raises(BadInput, match="the plan is for a, b, c, and the devices are a, "):
        ranked(PLAN, names)


def test_spans_are_those_of_the_device_of_their_rank() -> None:
    plan = ranked(PLAN, "cba")

    def device(transport: Transport) -> list[Span]:
        name = plan.devices[transport.rank]
        return gather_spans(transport, plan, [Span(name, "forward", ord(name), 0.0, 1.0)])

    found, *_ = in_threads(3, device)
    assert [(span.device, span.micro_batch) for span in found] == [("c", 99), ("b", 98), ("a", 97)]
