"""What a launched process makes of its configuration, without a launcher; with one it is in test_torchrun.py."""

from typing import Any

import pytest

from pac_core.contracts.cluster import DeviceProfile
from pac_core.contracts.transport import CLOSED, Transport
from pac_core.errors import BadInput, Followed, PeerLost
from pac_core.launch import Launch, leads_here
from pac_core.registry import Registry
from pac_core.runtime.crew import has_stages
from pac_core.runtime.spmd import Spmd, as_launched, command_digest
from pac_core.testing.threads import in_threads


class Losing:
    """As much of a transport as is asked."""

    def __init__(self, lost: dict[int, str]) -> None:
        self.lost = lambda: lost


@pytest.fixture
def launched(monkeypatch: Any) -> Any:
    """Sets what torchrun does."""

    def of(rank: int = 0, size: int = 2, here: int = 2) -> None:
        told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": here, "TORCHELASTIC_RUN_ID": "none"}
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))

    return of


def test_a_process_learns_its_place(launched: Any, monkeypatch: Any) -> None:
    launched(rank=3, size=8, here=2)
    assert Launch.found() == Launch(rank=3, size=8, here=2)
    assert not leads_here()
    launched(rank=0)
    assert leads_here()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # the others alone are set by many
    assert Launch.found() is None
    assert leads_here()


def test_launched_processes_are_the_devices(launched: Any, config: Any) -> None:
    launched(size=3)
    found = as_launched(config(transport="torch", scheduler="pipeline"), Registry())
    assert (found.devices, found.transport) == ("3", "torch")
    assert has_stages(found)
    assert as_launched(config(transport="torch", devices=3), Registry()).devices == "3"


def test_a_single_process_has_no_transport(launched: Any, config: Any) -> None:
    launched(size=1)
    found = as_launched(config(transport="torch"), Registry())
    assert (found.devices, found.transport) == ("1", None)
    assert as_launched(config(devices=2), Registry()).devices == "2"


def test_processes_of_a_machine_are_alike_whatever_they_have_measured(config: Any, monkeypatch: Any) -> None:
    profiles = [DeviceProfile(name, speed, 1) for name, speed in (("a/0", 4e9), ("a/1", 8e9), ("b/2", 1e9))]
    monkeypatch.setattr(Spmd, "_profile", lambda crew: profiles[crew._launch.rank])

    def device(transport: Transport) -> list[float]:
        crew = Spmd(config(transport="torch"), Launch(rank=transport.rank, size=3, here=2), Registry())
        crew._introduce(transport)
        return [each.flops for each in crew.devices.devices]

    assert in_threads(3, device)[0] == [6e9, 6e9, 1e9]


@pytest.mark.parametrize(
    ("size", "given", "told"),
    [
        (None, {"transport": "torch"}, "started as in 'torchrun --nproc-per-node 2 .*pac finetune --transport torch"),
        (None, {"transport": "torch", "devices": 2}, "started as in 'torchrun"),
        (2, {}, "has started 2 processes of this run, which need --transport torch"),
        (2, {"transport": "zmq", "devices": 2}, "need --transport torch"),
        (2, {"transport": "torch", "devices": 1}, "--devices 1: torchrun has started 2 processes"),
        (2, {"transport": "torch", "devices": "cluster.yaml"}, "--devices cluster.yaml: torchrun has started 2"),
        (2, {"transport": "troch"}, "did you mean 'torch'"),
    ],
)
def test_launcher_transport_and_devices_must_fit(
    launched: Any, config: Any, run: Any, size: int | None, given: dict[str, Any], told: str
) -> None:
    if size is not None:
        launched(size=size)
    with pytest.raises(BadInput, match=told) as refused:
        run(**given)
    assert "\n" not in str(refused.value)


def test_what_must_agree_is_in_the_digest(config: Any) -> None:
    given = config()
    assert command_digest(given) == command_digest(config(model="elsewhere", output="out", cache__dir="c"))
    for changes in ({"seed": 1}, {"optimizer__lr": 0.5}, {"cache__dtype": "int8"}, {"resume": True}):
        assert command_digest(given) != command_digest(config(**changes))


def test_a_failure_is_told_once(config: Any) -> None:
    def told(rank: int, lost: dict[int, str]) -> str:
        """What this device says of it, having learnt of the first."""
        device = Spmd(config(), Launch(rank, 4, 4), Registry())
        device._transport = Losing(lost)  # type: ignore[assignment]
        failure = device.explain(PeerLost(*next(iter(lost.items()))))
        return "" if isinstance(failure, Followed) else str(failure)

    assert told(0, {1: CLOSED}).startswith("lost device 1: it closed its transport; ")
    assert told(0, {1: CLOSED, 3: "it died"}).startswith("lost device 3: it died; ")
    assert told(0, {1: CLOSED}).endswith("--resume goes on from there")
    assert told(1, {0: "it died"}).startswith("lost device 0: it died; "), "the leader cannot say it"
    assert told(2, {0: "it died"}) == ""
    assert told(1, {0: CLOSED}) == ""
    assert told(1, {2: "it died"}) == ""
