"""The clock of an emulated device, on a time that the test makes pass."""

from copy import deepcopy

import pytest

from pac_core.emulated.clock import CATCH_UP, Clock


class Machine:
    """Wall time and a thread's processor time; sleeping takes ``coarse`` seconds more than asked for."""

    def __init__(self, coarse: float = 0.0) -> None:
        self.wall = self.processor = 0.0
        self.coarse = coarse

    def work(self, seconds: float) -> None:
        self.wall += seconds
        self.processor += seconds

    def block(self, seconds: float) -> None:
        self.wall += seconds

    def sleep(self, seconds: float) -> None:
        self.wall += seconds + self.coarse

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.processor, self.sleep)


def test_own_work_is_part_of_what_is_waited_for() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(3):
        machine.work(0.01)
        clock.spend(0.05)
    assert machine.wall == pytest.approx(0.15)


def test_blocking_on_others_is_not() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.block(1.0)
    clock.spend(0.05)
    assert machine.wall == pytest.approx(1.05)


def test_lateness_is_caught_up_with() -> None:
    """Of a coarse timer, and of work that takes longer than a wait."""
    machine = Machine(coarse=0.002)
    clock = machine.clock()
    for _ in range(100):
        clock.spend(0.01)
    assert machine.wall == pytest.approx(1.0, abs=0.0021)
    busy = Machine()
    clock = busy.clock()
    busy.work(0.03)
    for _ in range(10):
        clock.spend(0.01)
    assert busy.wall == pytest.approx(0.1)


def test_lateness_that_was_slept_through_is_not() -> None:
    """A device that was late and has waited for others since is late for the others as well."""
    machine = Machine(coarse=0.02)
    clock = machine.clock()
    clock.spend(0.01)
    machine.block(1.0)
    machine.coarse = 0.0
    clock.spend(0.05)
    assert machine.wall == pytest.approx(0.03 + 1.0 + 0.05)


def test_loading_is_no_computing() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.work(5.0)
    for _ in range(10):
        clock.spend(0.1)
    assert machine.wall == pytest.approx(6.0 - CATCH_UP)


def test_copies_of_a_model_share_their_device() -> None:
    clock = Machine().clock()
    assert deepcopy([clock])[0] is clock
