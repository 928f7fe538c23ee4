"""What a person sees of a run: bars on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pac_core.events import EpochDone, Event, RunStarted, StepDone


class RunView:
    """An observer that shows progress on stderr: bars with samples a second, time left and cache hits on a terminal,
    plain lines in a log."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._phase: tuple[int, str] | None = None
        self._task = self._bar("loading model and data", None)

    def __enter__(self) -> RunView:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

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

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

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


def epoch_line(event: EpochDone) -> str:
    """One line about a finished epoch."""
    record = event.record
    scores = [f"{name} {value:.3f}" for name, value in event.metrics.items() if name != "loss"]
    took = f"{record['seconds']:.1f} s, loss {record['loss']:.3f}, cache hits {record['cache_hits']:,}"
    return f"epoch {record['epoch']} ({record['phase']}): {', '.join((took, *scores))}"
