"""FineTuner: a run from configuration to saved adapter, in the steps of the design."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pac_core.config import RunConfig
from pac_core.errors import RunFailed, TransportError
from pac_core.events import CheckpointSaved, EpochDone, Event, RunFinished, RunStarted, StepDone
from pac_core.files import check_writable, read_tensors, write_json, write_tensors
from pac_core.metrics import watched
from pac_core.model import PacModel
from pac_core.registry import Registry
from pac_core.runtime.checkpoint import (
    BEST_NAME,
    FILL_NAME,
    STATE_NAME,
    Progress,
    check_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pac_core.runtime.cluster_crew import crew_for
from pac_core.runtime.evaluate import evaluate, generated_metrics
from pac_core.runtime.fill import Filled, calibrate, check_shared, planned_fill, prefill, release
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.load import Loaded, load, open_backbone
from pac_core.runtime.optimizer import make_optimizer
from pac_core.runtime.report import device_reports, epoch_record, run_identity, run_metrics, save, single_plan
from pac_core.runtime.team import ALONE, Replicas, Team
from pac_core.runtime.train import Trainer, epoch_batches, train_epoch

Observer = Callable[[Event], None]

log = logging.getLogger("pac")


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run left behind: its folder, the content of ``metrics.json``, and the trained model."""

    output: Path
    metrics: dict[str, Any]
    model: PacModel


class FineTuner:
    """Fine-tunes as a configuration says.

    Args:
        config: the run.
        registry: the plugins; by default all that are installed.
        observers: called with each `pac_core.events.Event`, as the ``pac_observe`` hooks are: one that fails is
            reported and left out.
    """

    def __init__(
        self, config: RunConfig, *, registry: Registry | None = None, observers: Sequence[Observer] = ()
    ) -> None:
        self.config = config
        self.registry = registry or Registry()
        self.observers = list(observers)
        self.checkpoint = config.output / "checkpoint"
        self.team: Team = ALONE
        self._began = 0.0

    def run(self) -> RunResult:
        """Load, plan, fill, train, evaluate, save.

        Raises:
            BadInput: something given cannot be used; nothing was trained.
            RunFailed: the run could not go on (disk full, ...); the cache and the last checkpoint are whole.
            KeyboardInterrupt: stopped; ``resume`` goes on from the checkpoint.
        """
        crew = crew_for(self.config, self.registry)
        check_writable(self.config.output)
        if crew is None:
            return self.run_in(lambda fingerprint: ALONE)
        with crew:
            try:
                return self.run_in(lambda fingerprint: Replicas(crew.connect(fingerprint)))
            except TransportError as error:
                raise crew.explain(error) from error

    def run_in(self, team: Callable[[str], Team]) -> RunResult:
        """Be one of the devices of a run; errors as in `run`.

        Args:
            team: connects with the others, given the backbone's fingerprint.

        Returns:
            The result, with metrics at the leader only.

        Raises:
            PeerLost: another device is gone.
        """
        loaded = load(self.config, self.registry)
        self.team, self._began = team(loaded.model.info.fingerprint), time.perf_counter()
        plan = single_plan(self.config, loaded.model, self.team.size)
        loaded.model.reader.reopen = partial(open_backbone, self.config.model, loaded.model.info.dtype, self.registry)
        try:
            check_shared(loaded.model, self.config.cache.store, self.team)
            self._check_resumable(loaded)
            self._tell(RunStarted(self.config.plain(), loaded.model.trainable(), loaded.truncated))
            with StopFlag() as stop:
                filled = self._fill(loaded, stop)
                progress = self._train(loaded, filled, stop)
            return self._finish(loaded, progress, plan)
        finally:
            loaded.model.reader.close()

    def _check_resumable(self, loaded: Loaded) -> None:
        """Refuse a checkpoint that cannot be gone on from before anything that takes long is done."""
        state, best = self.checkpoint / STATE_NAME, self.checkpoint / BEST_NAME
        if self.config.resume and state.exists():
            check_checkpoint(state, run_identity(self.config, loaded))
            if best.exists():
                read_tensors(best, "the best weights so far; run without --resume to start anew")

    def _fill(self, loaded: Loaded, stop: StopFlag) -> Filled:
        """Run the backbone ahead of training, unless epoch 1 is to do so as it goes."""
        model = loaded.model
        began, before = time.perf_counter(), model.reader.counters.backbone_samples
        ahead = self.config.fill != "train-while-fill"

        def on_progress(done: int, total: int) -> None:
            self._tell(StepDone(1, "fill", done, total, None, 0))

        if ahead:
            path = self.checkpoint / FILL_NAME
            planned = planned_fill(model, loaded.train, path, self.config.resume) if self.team.leads else ()
            prefill(model, loaded.train, stop, on_progress, self.team, planned)
        calibrate(model, loaded.train)
        (samples,) = self.team.total([model.reader.counters.backbone_samples - before])
        filled = Filled(time.perf_counter() - began, int(samples))
        if ahead:
            prefill(model, loaded.eval, stop, on_progress, self.team)
            self._release(loaded)
        return filled

    def _train(self, loaded: Loaded, filled: Filled, stop: StopFlag) -> Progress:
        """All epochs, from the checkpoint if one is to be resumed; leaves the best weights in the model."""
        trainer = self._trainer(loaded, stop)
        self.team.align(trainer.model)
        best = self.checkpoint / BEST_NAME
        if self.config.resume and trainer.checkpoint.exists():
            progress = load_checkpoint(trainer.checkpoint, trainer.model, trainer.optimizer, trainer.identity)
        else:
            self._forget_older()
            before = self._evaluate(loaded, 0) if loaded.eval else None
            progress = Progress(seconds=filled.seconds, backbone_samples=filled.backbone_samples, before=before)
        self.team.meet(stop)  # the leader may write the checkpoint only once all have read it
        while progress.epoch <= self.config.epochs and not self._out_of_patience(progress):
            progress = self._epoch(loaded, trainer, train_epoch(trainer, progress))
        self.team.meet(stop)  # the leader has written the best weights
        if progress.best is not None and best.exists():
            trainer.model.load_state_dict(read_tensors(best, "the best weights so far"))
        return progress

    def _forget_older(self) -> None:
        """Remove the checkpoint of an older run, which this one is not to be resumed from."""
        if self.team.leads:
            (self.checkpoint / BEST_NAME).unlink(missing_ok=True)
            (self.checkpoint / STATE_NAME).unlink(missing_ok=True)

    def _trainer(self, loaded: Loaded, stop: StopFlag) -> Trainer:
        config, model = self.config, loaded.model

        def on_step(now: Progress, done: int, loss: float) -> None:
            phase = "cached" if model.backbone.released else "fill"
            hits = max(done - now.backbone_samples, 0)
            self._tell(StepDone(now.epoch, phase, done, len(loaded.train), loss, hits))

        return Trainer(
            config=config,
            model=model,
            optimizer=make_optimizer(model, config.optimizer),
            examples=loaded.train,
            steps_per_epoch=len(epoch_batches(loaded.train, config, 1)),
            checkpoint=self.checkpoint / STATE_NAME,
            identity=run_identity(config, loaded),
            stop=stop,
            on_step=on_step,
            team=self.team,
        )

    def _epoch(self, loaded: Loaded, trainer: Trainer, progress: Progress) -> Progress:
        """Close an epoch: evaluate, keep the best weights, write the checkpoint."""
        model = loaded.model
        assert model.reader.cache is not None
        model.reader.cache.flush()
        self._check_finite(progress.epoch, progress.loss_sum)
        metrics = self._evaluate(loaded, progress.epoch) if loaded.eval else {}
        self._check_finite(progress.epoch, metrics.get("loss", 0.0))
        self._release(loaded)
        record = epoch_record(progress, loaded.train, metrics)
        value = watched(metrics)
        better = value is not None and (progress.best is None or value > progress.best)
        if better and self.team.leads:
            write_tensors(self.checkpoint / BEST_NAME, model.state_dict())
        progress = Progress(
            epoch=progress.epoch + 1,
            records=(*progress.records, record),
            best=value if better else progress.best,
            stale=0 if better else progress.stale + 1,
            before=progress.before,
        )
        if self.team.leads:
            save_checkpoint(trainer.checkpoint, model, trainer.optimizer, progress, trainer.identity)
        self._tell(CheckpointSaved(trainer.checkpoint))
        self._tell(EpochDone(record, metrics))
        return progress

    def _check_finite(self, epoch: int, loss: float) -> None:
        """Stop a run whose training has diverged, before it overwrites anything."""
        if not math.isfinite(loss):
            raise RunFailed(
                f"training diverged: the loss of epoch {epoch} is {loss}; lower --lr, which is "
                f"{self.config.optimizer.lr:g}"
            )

    def _release(self, loaded: Loaded) -> None:
        """Free the backbone once the cache holds everything; say so if it cannot be freed."""
        if not loaded.model.backbone.released and not release(loaded.model, [*loaded.train, *loaded.eval]):
            log.warning("the cache could not hold every sample, so the backbone stays in memory and runs again")

    def _evaluate(self, loaded: Loaded, epoch: int) -> dict[str, float]:
        def on_progress(done: int) -> None:
            done = min(done * self.team.size, len(loaded.eval))
            self._tell(StepDone(epoch, "evaluate", done, len(loaded.eval), None, done))

        return evaluate(loaded.model, loaded.eval, self.config.batch_size, on_progress, self.team).metrics

    def _out_of_patience(self, progress: Progress) -> bool:
        patience = self.config.early_stopping
        return patience is not None and progress.best is not None and progress.stale >= patience

    def _finish(self, loaded: Loaded, progress: Progress, plan: dict[str, Any]) -> RunResult:
        """Evaluate the best weights, generate answers where the task is text, save everything."""
        output, model = self.config.output, loaded.model
        final = self._evaluate(loaded, progress.epoch) if loaded.eval else {}
        devices = device_reports(self.team, model, time.perf_counter() - self._began)
        if not self.team.leads:
            return RunResult(output, {}, model)
        save(self.config, loaded)
        if model.task.generates and loaded.eval and self.config.generation.eval_samples:
            final |= self._generated(loaded)
        metrics = run_metrics(loaded, progress, plan, final, devices)
        write_json(output / "plan.json", plan)
        write_json(output / "metrics.json", metrics)
        self._tell(RunFinished(metrics))
        return RunResult(output, metrics, model)

    def _generated(self, loaded: Loaded) -> dict[str, float]:
        """Scores of generated answers; the backbone is loaded again for them."""
        model, settings = loaded.model, self.config.generation
        model.reader.need_backbone("answers are to be generated")
        chosen = loaded.eval_samples[: settings.eval_samples]

        def on_progress(done: int) -> None:
            self._tell(StepDone(self.config.epochs, "generate", done, len(chosen), None, 0))

        return generated_metrics(
            model, loaded.encoder, chosen, settings, seed=self.config.seed, on_progress=on_progress
        )

    def _tell(self, event: Event) -> None:
        if not self.team.leads:
            return
        for observer in list(self.observers):
            try:
                observer(event)
            except Exception:  # a stranger's code may fail in any way
                self.observers.remove(observer)
                log.exception("observer %r failed and is left out", observer)
        self.registry.tell(event)
