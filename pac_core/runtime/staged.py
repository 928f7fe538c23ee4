"""Epoch 1 of a run by a plan, in the order of a run: fill, train, and bring entries to where later epochs need them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pac_core.batches import Dataset, epoch_batches
from pac_core.config import RunConfig
from pac_core.contracts.scheduler import Plan
from pac_core.runtime import first_epoch, hybrid
from pac_core.runtime.checkpoint import FILL_NAME, Progress
from pac_core.runtime.fill import Filled, planned_fill
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.job import Assigned
from pac_core.runtime.spreading import Spreading
from pac_core.runtime.team import Replicas
from pac_core.runtime.train import Trainer, train_epoch


class Stages:
    """This device's part in the stages of a plan. Every device calls the same methods in the same order.

    Args:
        config: the run.
        work: what it works on; the backbone holds no layers.
        plan: who runs what.
        team: the devices of the plan.

    Attributes:
        learns: whether the side network trains in the stages as the backbone runs. Texts read apart are matched in all
            taps first, which no stage has; for them the cache is filled ahead.

    Raises:
        BadInput: as `hybrid.open_stage`.
        PeerLost: another device is gone.
    """

    def __init__(self, config: RunConfig, work: Assigned, plan: Plan, team: Replicas) -> None:
        loaded = work.loaded
        self.learns = config.fill == "train-while-fill" and not loaded.task.apart
        self._config = config
        self._work = work
        team.align(loaded.model)  # before it is cut: only the leader's first weights come from the backbone
        self._device = hybrid.open_stage(plan, team, loaded.model, loaded.open_layers)
        self._spreading: Spreading | None = None

    def fill(self, stop: StopFlag, on_progress: Callable[[int, int], None], *, scaled: bool) -> Filled:
        """Run the backbone ahead of training over what is not to be learnt from at once, and set the model's scales.

        Args:
            on_progress: told of samples done, and to do.
            scaled: whether the scales come from a checkpoint.

        Raises:
            KeyboardInterrupt, PeerLost, StoreFull, RunFailed: as `hybrid.fill`.
        """
        device, work = self._device, self._work
        began, samples = time.perf_counter(), 0
        if not self.learns:
            owners = owners_in(work.train)
            samples = hybrid.fill_shares(device, work.train.examples, owners, stop, on_progress, self._planned)
            hybrid.set_scales_from_cache(device, work.train.examples)
        elif not scaled:
            hybrid.set_scales(device, work.train.examples, stop)
        filled = Filled(time.perf_counter() - began, samples)
        hybrid.fill(device, work.eval.examples, owners_in(work.eval), stop, on_progress, later=work.train.examples)
        if not self.learns:
            self._leave(1)
        return filled

    def _planned(self, todo: Sequence[int]) -> Sequence[int]:
        """The samples that this fill, or a stopped one that it goes on with, set out for."""
        config, team, note = self._config, self._device.team, list[int]()
        if team.leads:
            path = config.output / "checkpoint" / FILL_NAME
            note = planned_fill(todo, self._work.train.examples, path, config.resume)
        given, _ = team.from_leader({"planned": note}, {})
        planned: list[int] = given["planned"]
        return planned

    def resume(self, progress: Progress, stop: StopFlag) -> None:
        """Go on where a run stands; errors as in `fill`."""
        if self.learns and progress.epoch > 1:
            self._fill_rest(stop)
            self._leave(progress.epoch)

    def train_epoch(self, trainer: Trainer, progress: Progress) -> Progress:
        """An epoch, in the stages or from the cache; at its end every device has the whole model.

        Raises:
            KeyboardInterrupt: a stop was requested; the checkpoint was written.
            PeerLost, StoreFull, RunFailed: as `hybrid.fill`.
        """
        if self.learns and progress.epoch == 1:
            progress = first_epoch.train_epoch(self._device, trainer, progress)
            self._fill_rest(trainer.stop)
            self._leave(2)
            return progress
        progress = train_epoch(replace(trainer, ready=self._wait), progress)
        began = time.perf_counter()
        self.end()
        return replace(progress, seconds=progress.seconds + time.perf_counter() - began)

    def end(self) -> None:
        """Return once all entries are at their owners; errors as in `fill`."""
        if self._spreading is not None:
            hybrid.end_spread(self._device, self._spreading, self._work.train.examples)
            self._spreading = None

    @property
    def spreads(self) -> bool:
        """Whether entries are on their way to this device."""
        return self._spreading is not None and not self._spreading.ended

    def _fill_rest(self, stop: StopFlag) -> None:
        """What a stopped process had learnt from is not in a memory store."""
        train = self._work.train
        hybrid.fill_shares(self._device, train.examples, owners_in(train), stop, lambda done, total: None)

    def _leave(self, epoch: int) -> None:
        """Let go of the backbone, and let entries travel beside other work, in the order in which ``epoch`` needs
        them."""
        train = self._work.train
        hybrid.close_stage(self._device)
        order = [i for batch in epoch_batches(train, self._config.seed, epoch) for i in batch]
        self._spreading = hybrid.begin_spread(self._device, train.examples, owners_in(train), order)

    def _wait(self, samples: Sequence[int]) -> None:
        if self._spreading is not None:
            self._spreading.wait(samples)


def owners_in(data: Dataset) -> list[int]:
    """For each sample the rank of the device that works on it once epoch 1 is over."""
    return [int(owner) for owner in data.owners]
