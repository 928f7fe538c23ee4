"""A leader gathers its workers: all, some, busy ones, and such that cannot take part."""

import logging
import time
from typing import Any

import pytest

from pac_core.addresses import free_port, join_address
from pac_core.errors import BadInput, Refused, RunFailed
from pac_core.registry import Registry
from pac_core.runtime.gathering import Gathering


@pytest.fixture
def gather(home: Any) -> Any:
    def of(*names: str, **changes: Any) -> Gathering:
        return Gathering(home.cluster(*names, **changes), Registry())

    return of


def test_all_come_and_say_what_they_are(home: Any, gather: Any) -> None:
    home.hand("kitchen")
    with gather("garage", "kitchen") as gathering:
        home.hand("garage")
        gathering.gather()
        gathering.check()
        offers = gathering.call("a-job")
        assert list(gathering.facts()) == ["kitchen", "garage"] or list(gathering.facts()) == ["garage", "kitchen"]
        assert gathering.facts()["garage"].gflops > 0
        assert sorted(offers) == ["garage", "kitchen"]
        assert len(set(offers.values())) == 2
        assert all(address.startswith("tcp://127.0.0.1:") for address in offers.values())


def test_what_the_cluster_file_says_counts_more_than_what_was_measured(home: Any, gather: Any) -> None:
    home.hand("kitchen")
    fixed = join_address("127.0.0.1", free_port("127.0.0.1"))
    device = {"name": "kitchen", "threads": 3, "memory": "2GB", "speed": 7.5, "address": fixed}
    with gather(devices=[device]) as gathering:
        gathering.gather()
        facts = gathering.facts()["kitchen"]
        assert (facts.threads, facts.memory_free_bytes, facts.gflops) == (3, 2 * 10**9, 7.5)
        assert gathering.call("a-job") == {"kitchen": fixed}


def test_a_worker_that_cannot_listen_where_the_cluster_file_says_is_named(home: Any, gather: Any) -> None:
    home.hand("kitchen")
    with gather(devices=[{"name": "kitchen", "address": "tcp://192.0.2.1:7000"}]) as gathering:
        gathering.gather()
        with pytest.raises(RunFailed, match=r"'kitchen' cannot take part: cannot listen at 'tcp://192\.0\.2\.1:7000'"):
            gathering.call("a-job")


def test_who_is_missing_is_named(home: Any, gather: Any) -> None:
    home.hand("kitchen")
    with gather("kitchen", "garage", wait=1.5) as gathering:
        gathering.gather()
        with pytest.raises(RunFailed, match=r"device 'garage' did not come to tcp://.* there: pac worker --leader"):
            gathering.check()


def test_another_version_is_refused_at_both_ends(home: Any, gather: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("pac_core.worker.own_version", lambda: "9.9")
    hand = home.hand("kitchen")
    with gather("kitchen") as gathering:
        gathering.gather()
        with pytest.raises(BadInput, match=r"device 'kitchen' cannot take part: its PAC is version 9\.9, and that of"):
            gathering.check()
        hand.ends()
    assert isinstance(hand.failed, Refused)
    assert "refuses this worker: its PAC is version 9.9" in str(hand.failed)


@pytest.mark.parametrize(("ahead", "told"), [(3600.0, "3600 s ahead of"), (-90.0, "90 s behind")])
def test_a_clock_that_differs_is_said(
    home: Any, gather: Any, monkeypatch: Any, caplog: Any, ahead: float, told: str
) -> None:
    now = time.time
    monkeypatch.setattr("pac_core.worker.time", _Clock(ahead, now))
    home.hand("kitchen")
    with caplog.at_level(logging.WARNING, "pac"), gather("kitchen") as gathering:
        gathering.gather()
        gathering.check()
    assert any(f"the clock of 'kitchen' is {told} this one" in r.getMessage() for r in caplog.records)


class _Clock:
    """The module ``time`` with another time of day."""

    def __init__(self, ahead: float, now: Any) -> None:
        self.time = lambda: now() + ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def test_the_second_of_two_leaders_is_told_whose_job_it_is(home: Any, gather: Any) -> None:
    other = join_address("127.0.0.1", free_port("127.0.0.1"))
    second = home.cluster("kitchen", leader=other, keys=str(home.folders["garage"].path))
    hand = home.hand("kitchen", home.address, other)
    with gather("kitchen") as first, Gathering(second, Registry()) as late:
        first.gather()
        late.gather()
        first.call("supper")
        with pytest.raises(RunFailed, match="'kitchen' cannot take part: it is busy with job 'supper' of 'desk'"):
            late.call("breakfast")
        first.meeting.close(1.0)
        until = time.monotonic() + 10
        while hand._thread.is_alive() and time.monotonic() < until:
            try:
                assert list(late.call("breakfast")) == ["kitchen"]
                break
            except RunFailed:
                time.sleep(0.1)
        else:
            pytest.fail("the worker did not become free")


def test_a_worker_that_is_stopped_says_so(home: Any, gather: Any) -> None:
    hand = home.hand("kitchen")
    with gather("kitchen") as gathering:
        gathering.gather()
        assert hand.stop() < 5
        with pytest.raises(RunFailed, match="device 'kitchen' has left: it was stopped there"):
            gathering.call("a-job")


def test_who_is_not_in_the_cluster_file_is_let_in_and_left_out(home: Any, gather: Any, caplog: Any) -> None:
    home.hand("garage")
    with gather("kitchen") as gathering, caplog.at_level(logging.WARNING, "pac"):
        until = time.monotonic() + 10
        while "garage" not in gathering.attendance.here and time.monotonic() < until:
            for event in gathering.meeting.receive(0.2):
                gathering.heed(event)
        assert gathering.missing() == ["kitchen"]
    assert any("'garage' is there, but not in the cluster file" in r.getMessage() for r in caplog.records)


def test_the_link_is_measured(home: Any, gather: Any) -> None:
    home.hand("kitchen")
    with gather("kitchen") as gathering:
        gathering.gather()
        began = time.monotonic()
        link = gathering.measure("kitchen")
        assert time.monotonic() - began < 5
        assert 0 < link.latency_seconds < 1
        assert link.bytes_per_second > 1e6


@pytest.mark.parametrize(
    ("names", "changes", "told"),
    [
        (
            ["attic"],
            {},
            "device 'attic' is not on the allow-list of cluster 'home' in .* has desk, garage, kitchen",
        ),
        (["kitchen"], {"transport": "local"}, "transport 'local' is not for workers that people start; choose zmq"),
        (["kitchen"], {"transport": "zmk"}, "did you mean 'zmq'"),
        (["desk"], {}, "cluster 'home' has no device beside this one, 'desk'"),
        (["kitchen"], {"keys": "/nowhere"}, "there are no keys in /nowhere"),
        (["kitchen"], {"leader": "tcp://192.0.2.1:7077"}, r"cannot listen at tcp://192\.0\.2\.1:7077: "),
        (["kitchen"], {"leader": "tcp://nowhere.invalid:7077"}, "host 'nowhere.invalid' of address"),
        (["kitchen"], {"interface": "none0"}, "interface 'none0' is not known; this machine has .*lo"),
    ],
    ids=str,
)
def test_a_cluster_that_cannot_be_is_refused(gather: Any, names: list[str], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        gather(*names, **changes)


def test_an_interface_can_be_chosen(home: Any, gather: Any) -> None:
    home.hand("kitchen")
    with gather("kitchen", interface="lo") as gathering:
        gathering.gather()
        gathering.check()
