"""What a person sees of a run: devices and bars on a terminal, lines in a log."""

import io
import time
from typing import Any

from rich.console import Console

from pac_core.cli.progress import RunView, device_table
from pac_core.events import DeviceJoined, DeviceLost, DeviceStatus, EpochDone, StepDone

JOINED = (DeviceJoined("desk", 0), DeviceJoined("[red]pi[/red]", 1))
STATUS = DeviceStatus("desk", 0, "fill", 0.93, 3 * 2**20, 512 * 2**20)


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_table_has_a_row_for_each_device() -> None:
    heads, desk, pi = text_of(device_table([STATUS, JOINED[1]])).splitlines()
    assert heads.split() == ["device", "stage", "phase", "busy", "sent", "memory"]
    assert desk.split() == ["desk", "1", "fill", "93%", "3.0", "MiB/s", "512", "MiB"]
    assert pi.split() == ["[red]pi[/red]", "2", "joined"]


def test_a_terminal_shows_devices_above_the_bar_and_leaves_nothing_of_them() -> None:
    screen = io.StringIO()
    with RunView(Console(file=screen, force_terminal=True, width=80, color_system=None)) as view:
        for event in (*JOINED, STATUS, StepDone(1, "fill", 5, 10, None, 0)):
            view(event)
        time.sleep(0.3)
        shown = screen.getvalue()
    assert shown.rindex("93%") < shown.rindex("filling the cache")
    view(DeviceLost("desk", "it was ended by SIGKILL"))
    assert "lost device desk: it was ended by SIGKILL" in screen.getvalue()


def test_one_device_has_no_table() -> None:
    screen = io.StringIO()
    with RunView(Console(file=screen, force_terminal=True, width=80, color_system=None)) as view:
        view(StepDone(1, "fill", 5, 10, None, 0))
        time.sleep(0.3)
    assert "busy" not in screen.getvalue()


def test_a_log_gets_a_line_every_ten_seconds_and_one_an_epoch() -> None:
    now = [0.0]
    log = io.StringIO()
    record = {"epoch": 2, "phase": "cached", "seconds": 25.0, "loss": 0.4, "cache_hits": 2000}
    with RunView(Console(file=log, width=80), clock=lambda: now[0]) as view:
        view(JOINED[0])
        view(STATUS)
        for second in range(25):
            now[0] = float(second)
            view(StepDone(2, "cached", 80 * second, 2000, 0.5, 80 * second))
        view(EpochDone(record, {}))
    first, second, last = log.getvalue().splitlines()
    assert first == "epoch 2, cached: 800/2,000 samples, loss 0.500; desk 93% busy, 3.0 MiB/s"
    assert second.startswith("epoch 2, cached: 1,600/2,000 samples")
    assert last.startswith("epoch 2 (cached): 25.0 s")
