"""What a run took, added up from its events."""

from pathlib import Path

from pac_core.events import CheckpointSaved, DeviceStatus, MiniBatchTimed, RunStarted, StepDone
from pac_core.report import DeviceUse, PhaseUse
from pac_core.runtime.recorder import Recorder
from pac_core.spans import Span


def test_time_goes_to_the_phase_of_the_later_event() -> None:
    times = iter([0.0, 2.0, 5.0, 6.0, 10.0, 10.5, 12.0])
    memory = iter([5, 9, 7, 6, 8, 8])
    recorder = Recorder(lambda: next(times), lambda: next(memory))
    recorder(RunStarted({}, 1))
    recorder(StepDone(1, "fill", 5, 10, None, 0))
    recorder(StepDone(1, "fill", 10, 10, None, 0))
    recorder(StepDone(1, "cached", 10, 10, 0.5, 0))
    recorder(CheckpointSaved(Path("state")))
    recorder.spent("save")
    assert recorder.phases == (
        PhaseUse("load", 2.0, 5), PhaseUse("fill", 4.0, 9), PhaseUse("cached", 4.0, 6), PhaseUse("save", 2.0, 8),
    )  # fmt: skip


def test_an_epoch_that_fills_as_it_trains_is_a_phase_of_its_own() -> None:
    recorder = Recorder()
    recorder(StepDone(1, "fill", 5, 10, 0.7, 0))
    assert [phase.phase for phase in recorder.phases] == ["train-while-fill"]


def test_statuses_are_averaged_by_device_and_phase() -> None:
    recorder = Recorder()
    for busy, memory in ((1.0, 10), (0.5, 30), (0.75, 20)):
        recorder(DeviceStatus("pi", 1, "fill", busy, 100 * busy, memory))
    recorder(DeviceStatus("desk", 0, "cached", 1.0, 0.0, 1))
    assert recorder.device_use == (DeviceUse("desk", "cached", 1.0, 0.0, 1), DeviceUse("pi", "fill", 0.75, 75.0, 30))
    assert recorder.phases == ()


def test_the_last_timeline_is_kept_until_the_next_run() -> None:
    recorder = Recorder()
    spans = (Span("a", "forward", 0, 0.0, 1.0),)
    recorder(MiniBatchTimed(()))
    recorder(MiniBatchTimed(spans))
    assert recorder.timeline == spans
    recorder.begin()
    assert recorder.timeline == ()
