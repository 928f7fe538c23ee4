"""What a person sees of a run: bars on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pac_core.events import EpochDone, Event, RunStarted, StepDone


class RunView:
    """An observer that shows progress on stderr: bars with samples a second, time left and cache hits on a terminal,
    plain lines in a log."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bars = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._current: tuple[tuple[int, str], TaskID] | None = None

    def __enter__(self) -> RunView:
        if self._bars:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self.console.print(f"trainable parameters: {event.trainable_params:,}")
        elif isinstance(event, StepDone) and self._bars:
            self._step(event)
        elif isinstance(event, EpochDone):
            self.console.print(epoch_line(event), soft_wrap=True)

    def _step(self, event: StepDone) -> None:
        key = (event.epoch, event.phase)
        if self._current is None or self._current[0] != key:
            if self._current is not None:
                self._progress.remove_task(self._current[1])
            task = self._progress.add_task(phase_name(event), total=event.total, rate="", note="")
            self._current = (key, task)
        task = self._current[1]
        speed = self._progress.tasks[-1].speed
        rate = f"{speed:,.0f} samples/s" if speed else ""
        self._progress.update(task, completed=event.done, total=event.total, rate=rate, note=note(event))


def phase_name(event: StepDone) -> str:
    """What is going on, in words."""
    words = {"fill": "filling the cache", "cached": "training from cache", "evaluate": "evaluating"}
    name = words.get(event.phase, event.phase)
    if event.phase == "fill" and event.loss is not None:
        name = "training, filling"
    return name if event.epoch == 0 or event.loss is None else f"epoch {event.epoch}: {name}"


def note(event: StepDone) -> str:
    """Loss and cache hits, where there are any."""
    loss = "" if event.loss is None else f"loss {event.loss:.4f}"
    hits = f"{event.cache_hits:,} cache hits" if event.cache_hits and event.phase != "evaluate" else ""
    return "  ".join(filter(None, (loss, hits)))


def epoch_line(event: EpochDone) -> str:
    """One line about a finished epoch."""
    record = event.record
    scores = "  ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
    return (
        f"epoch {record['epoch']} ({record['phase']}): {record['seconds']:.1f} s  loss {record['loss']:.4f}  "
        f"cache hits {record['cache_hits']:,}  backbone ran for {record['backbone_samples']:,}  {scores}"
    )
