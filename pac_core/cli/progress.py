"""What a person sees of a run: a table of the devices and bars on a terminal; elsewhere a line an epoch, and every ten
seconds one about where it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pac_core.events import DeviceJoined, DeviceLost, DeviceStatus, EpochDone, Event, RunStarted, StepDone

LINE_SECONDS = 10.0
"""Between two lines of progress in a log."""


class RunView:
    """An observer that shows progress on stderr: on a terminal the devices, where there are several, above bars with
    samples a second, time left and cache hits; plain lines in a log.

    Args:
        console: where to; by default stderr.
        clock: seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._devices: dict[str, DeviceStatus | DeviceJoined] = {}
        self._live = Live(console=self.console, get_renderable=self._picture, transient=True, refresh_per_second=10)
        self._clock = clock
        self._said = clock()
        self._phase: tuple[int, str] | None = None
        self._task = self._bar("loading model and data", None)

    def __enter__(self) -> RunView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self._say(f"trainable parameters: {event.trainable_params:,}")
            if event.truncated:
                self._say(f"{event.truncated:,} samples were cut to {event.config['max_length']} tokens")
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._say(epoch_line(event))
        elif isinstance(event, DeviceJoined | DeviceStatus):
            self._devices[event.device] = event
        elif isinstance(event, DeviceLost):
            self._devices.pop(event.device, None)
            self._say(f"lost device {event.device}: {event.reason}")

    def _picture(self) -> Group:
        devices = list(self._devices.values())  # a copy, since the display has a thread of its own
        return Group(device_table(devices), self._progress) if devices else Group(self._progress)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)
        self._said = self._clock()

    def _bar(self, name: str, total: int | None) -> TaskID:
        return self._progress.add_task(name, total=total, count="", note="")

    def _step(self, event: StepDone) -> None:
        if self._phase != (event.epoch, event.phase):
            self._phase = (event.epoch, event.phase)
            self._progress.remove_task(self._task)
            self._task = self._bar(phase_name(event), event.total)
        self._progress.update(self._task, completed=event.done, total=event.total)
        speed = self._progress.tasks[-1].speed
        rate = f"  {speed:,.0f} samples/s" if speed else ""
        self._progress.update(self._task, count=f"{event.done:,}/{event.total:,}{rate}", note=note(event))
        if not self.console.is_terminal and self._clock() - self._said >= LINE_SECONDS:
            told = [status for status in self._devices.values() if isinstance(status, DeviceStatus)]
            self._say("; ".join((step_line(event), *map(device_words, told))))


def phase_name(event: StepDone) -> str:
    """What is going on, in words."""
    if event.phase == "fill":
        return "filling the cache" if event.loss is None else f"epoch {event.epoch}, filling"
    words = {"cached": f"epoch {event.epoch}, cached", "evaluate": "evaluating", "generate": "writing answers"}
    return words.get(event.phase, event.phase)


def note(event: StepDone) -> str:
    """Loss and cache hits, where there are any."""
    loss = "" if event.loss is None else f"loss {event.loss:.3f}"
    hits = f"{event.cache_hits:,} hits" if event.cache_hits and event.phase != "evaluate" else ""
    return "  ".join(filter(None, (loss, hits)))


def step_line(event: StepDone) -> str:
    """One line about where a run is."""
    loss = "" if event.loss is None else f", loss {event.loss:.3f}"
    return f"{phase_name(event)}: {event.done:,}/{event.total:,} samples{loss}"


def epoch_line(event: EpochDone) -> str:
    """One line about a finished epoch."""
    record = event.record
    scores = [f"{name} {value:.3f}" for name, value in event.metrics.items() if name != "loss"]
    took = f"{record['seconds']:.1f} s, loss {record['loss']:.3f}, cache hits {record['cache_hits']:,}"
    return f"epoch {record['epoch']} ({record['phase']}): {', '.join((took, *scores))}"


def device_words(status: DeviceStatus) -> str:
    """How a device is doing, for a log."""
    return f"{status.device} {status.busy:.0%} busy, {status.bytes_per_s / 2**20:.1f} MiB/s"


def device_table(devices: Iterable[DeviceStatus | DeviceJoined]) -> Table:
    """A row for each device; stages count from 1."""
    table = Table("device", box=None, padding=(0, 2, 0, 0))
    for name in ("stage", "phase", "busy", "sent", "memory"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for device in devices:
        told: tuple[str, ...] = ("joined", "", "", "")
        if isinstance(device, DeviceStatus):
            rate, memory = f"{device.bytes_per_s / 2**20:.1f} MiB/s", f"{device.resident_bytes / 2**20:,.0f} MiB"
            told = (device.phase, f"{device.busy:.0%}", rate, memory)
        table.add_row(*map(Text, (device.device, str(device.stage + 1), *told)))
    return table
