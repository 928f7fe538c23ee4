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
from pac_core.contracts.cluster import Cluster
from pac_core.contracts.transport import Transport
from pac_core.emulated.emulate import check_emulated, check_place, emulated, emulating
from pac_core.errors import RunFailed, TransportError
from pac_core.events import CheckpointSaved, EpochDone, Event, MiniBatchTimed, RunFinished, RunStarted, StepDone
from pac_core.files import check_writable, read_tensors, write_json, write_tensors
from pac_core.metrics import watched
from pac_core.model import PacModel
from pac_core.planning.make import device_names
from pac_core.registry import Registry
from pac_core.runtime.audience import Audience, Observer
from pac_core.runtime.checkpoint import (
    BEST_NAME,
    FILL_NAME,
    SHARES_NAME,
    STATE_NAME,
    Progress,
    check_checkpoint,
    load_checkpoint,
    noted_shares,
    save_checkpoint,
)
from pac_core.runtime.cluster_crew import crew_for
from pac_core.runtime.crew import has_stages, processes_here
from pac_core.runtime.evaluate import Evaluation, evaluate, generated_metrics
from pac_core.runtime.fill import Filled, calibrate, planned_fill, prefill, release
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.job import Assigned, hand_out, take
from pac_core.runtime.load import Loaded, Source, load
from pac_core.runtime.monitor import Monitor, Reading, places
from pac_core.runtime.optimizer import make_optimizer, moments, set_moments
from pac_core.runtime.planned import run_plan
from pac_core.runtime.ranks import RankedPlan
from pac_core.runtime.recorder import Recorder
from pac_core.runtime.report import (
    beside_plan,
    device_reports,
    epoch_record,
    run_identity,
    run_metrics,
    save,
    single_plan,
    write_report,
)
from pac_core.runtime.settle import settle
from pac_core.runtime.spmd import as_launched
from pac_core.runtime.staged import Stages
from pac_core.runtime.team import ALONE, Replicas, Team
from pac_core.runtime.train import Trainer, train_epoch

log = logging.getLogger("pac")


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run left behind: its folder, the content of ``metrics.json`` (empty at a device that another one leads),
    and the trained model."""

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
        self.registry = emulating(registry or Registry(), config)
        self.checkpoint = config.output / "checkpoint"
        self.team: Team = ALONE
        self.stages: Stages | None = None
        self._began = 0.0
        self._names: list[str] = []
        self._recorder = Recorder()
        self._audience = Audience(self.registry, [self._recorder, *observers])
        self._phase = "load"

    def run(self) -> RunResult:
        """Load, plan, fill, train, evaluate, save. Under torchrun this is one device of several, of which the first
        leads.

        Raises:
            BadInput: something given cannot be used; nothing was trained.
            RunFailed: the run could not go on (disk full, ...); the cache and the last checkpoint are whole.
            KeyboardInterrupt: stopped; ``resume`` goes on from the checkpoint.
        """
        self.config = as_launched(self.config, self.registry)
        crew = crew_for(self.config, self.registry)
        if crew is None or crew.leads:
            check_writable(self.config.output)
            check_place(self.config)
        if crew is None:
            self._begin()
            loaded = load(self.config, self.registry)
            planned = self._plan(loaded, emulated(processes_here(1), self.config.emulate))
            return self._run(settle(self.config, loaded, planned, self.registry), planned)
        with crew:
            try:
                if not crew.leads:
                    return self.take_part(crew.connect())
                return self.lead(crew.connect, crew.devices, remote=crew.remote)
            except TransportError as error:
                raise crew.explain(error) from error

    def lead(self, connect: Callable[[], Transport], devices: Cluster, *, remote: bool = False) -> RunResult:
        """Run over several devices, the others of which `take_part`.

        Args:
            connect: connects with them, as their rank 0; called once the data are read and the plan is made.
            devices: all of them, by rank.
            remote: whether they are other machines, which may lack the model.

        Raises:
            PeerLost: a device is gone.
            BadInput, RunFailed, KeyboardInterrupt: as `run`.
        """
        self._begin()
        loaded = load(self.config, self.registry, {} if has_stages(self.config) else None)
        self._names = [device.name for device in devices.devices]
        planned = self._plan(loaded, devices)
        loaded = settle(self.config, loaded, planned, self.registry)
        self.team = Replicas(connect(), noted_shares(self.checkpoint / SHARES_NAME, devices, self.config.resume))
        sends_weights = remote and self.config.emulate is None
        hand_out(self.team.transport, loaded, planned, self.team.shares, devices.devices if sends_weights else None)
        return self._run(loaded, planned)

    def take_part(self, transport: Transport) -> RunResult:
        """Be a device of a run that another one leads.

        Raises:
            PeerLost: another device is gone.
            BadInput, RunFailed, KeyboardInterrupt: as `run`.
        """
        self._begin()
        loaded, planned, shares = take(transport, self.config, self.registry)
        self.team = Replicas(transport, shares)
        return self._run(loaded, planned)

    def _plan(self, loaded: Loaded, devices: Cluster) -> RankedPlan | None:
        planned = run_plan(self.config, loaded, self.registry, devices)
        check_emulated(self.config, loaded, planned, devices)
        return planned

    def _begin(self) -> None:
        self._recorder.begin()
        self._phase = "load"

    def _run(self, loaded: Loaded, planned: RankedPlan | None) -> RunResult:
        """All steps after loading and planning; the result has metrics at the leader only."""
        model, config, team = loaded.model, self.config, self.team
        self._began = time.perf_counter()
        if planned is None:
            self._names = self._names or device_names(team.size)
            plan = single_plan(config, model, self._names)
        else:
            self._names = list(planned.devices)
            plan = {**planned.to_json(), **beside_plan(model)}
        train, held_out = (team.share_out(data, config.batch_size, config.seed) for data in (loaded.train, loaded.eval))
        work = Assigned(loaded, train, held_out)
        model.reader.reopen = partial(loaded.open_layers, None)
        try:
            if team.leads:
                self._check_resumable(loaded)
            self._tell(RunStarted(config.plain(), model.trainable(), loaded.source.truncated if loaded.source else 0))
            if planned is not None and isinstance(team, Replicas):
                self.stages = Stages(config, work, planned, team)
            with StopFlag() as stop, self._monitor(plan):
                filled = self._fill(work, stop)
                progress = self._train(work, filled, stop)
            return self._finish(work, progress, plan)
        finally:
            model.reader.close()

    def _monitor(self, plan: dict[str, Any]) -> Monitor:
        def read() -> Reading:
            return Reading(self._phase, self.team.waited, self.team.sent)

        return Monitor(self.team.transport, places(plan, self._names), read, self._tell)

    def _check_resumable(self, loaded: Loaded) -> None:
        """Refuse a checkpoint that cannot be gone on from before anything that takes long is done."""
        state, best = self.checkpoint / STATE_NAME, self.checkpoint / BEST_NAME
        if self.config.resume and state.exists():
            check_checkpoint(state, run_identity(self.config, loaded))
            if best.exists():
                read_tensors(best, "the best weights so far; run without --resume to start anew")

    def _fill(self, work: Assigned, stop: StopFlag) -> Filled:
        """Run the backbone ahead of training, unless epoch 1 is to do so as it goes."""
        loaded, team = work.loaded, self.team
        model = loaded.model
        began, before = time.perf_counter(), model.reader.counters.backbone_samples
        ahead = self.config.fill != "train-while-fill"

        def on_progress(done: int, total: int) -> None:
            self._tell(StepDone(1, "fill", done, total, None, 0))

        if self.stages is not None:
            resumes = self.config.resume and (self.checkpoint / STATE_NAME).exists()
            given, _ = team.from_leader({"scaled": resumes}, {})
            return self.stages.fill(stop, on_progress, scaled=given["scaled"])
        if ahead:
            path = self.checkpoint / FILL_NAME
            planned = partial(planned_fill, examples=loaded.train, path=path, resume=self.config.resume)
            prefill(model, work.train, stop, on_progress, team, planned)
        calibrate(model, work.train, team)
        (samples,) = team.total([model.reader.counters.backbone_samples - before])
        filled = Filled(time.perf_counter() - began, int(samples))
        if ahead:
            prefill(model, work.eval, stop, on_progress, team)
            self._release(work)
        return filled

    def _train(self, work: Assigned, filled: Filled, stop: StopFlag) -> Progress:
        """All epochs, from the checkpoint if one is to be resumed; leaves the best weights in the model."""
        trainer = self._trainer(work, stop)
        best = self.checkpoint / BEST_NAME
        progress = self._resumed(trainer)
        if progress is None:
            self._forget_older()
            before = self._evaluate(work, 0).metrics if work.loaded.eval else None
            progress = Progress(seconds=filled.seconds, backbone_samples=filled.backbone_samples, before=before)
        if self.stages is not None:
            self.stages.resume(progress, stop)
        step = train_epoch if self.stages is None else self.stages.train_epoch
        while progress.epoch <= self.config.epochs and not self._out_of_patience(progress):
            progress = self._epoch(work, trainer, step(trainer, progress))
        if self.stages is not None:
            self.stages.end()
        if progress.best is not None:
            if self.team.leads and best.exists():
                trainer.model.load_state_dict(read_tensors(best, "the best weights so far"))
            self.team.align(trainer.model)
        return progress

    def _resumed(self, trainer: Trainer) -> Progress | None:
        """Where a run to be resumed stands, with its model and optimiser, at every device; None without one."""
        model, optimizer = trainer.model, trainer.optimizer
        progress: Progress | None = None
        if self.team.leads and self.config.resume and trainer.checkpoint.exists():
            progress = load_checkpoint(trainer.checkpoint, model, optimizer, trainer.identity)
        plain = {"progress": None if progress is None else vars(progress)}
        plain, tensors = self.team.from_leader(plain, moments(model, optimizer))
        if self.stages is None or plain["progress"] is not None:  # stages have told each other all that is new
            self.team.align(model)
        if plain["progress"] is None:
            return None
        if tensors and not self.team.leads:
            set_moments(model, optimizer, tensors)
        return Progress.of(plain["progress"])

    def _forget_older(self) -> None:
        """Remove the checkpoint of an older run, which this one is not to be resumed from."""
        if self.team.leads:
            (self.checkpoint / BEST_NAME).unlink(missing_ok=True)
            (self.checkpoint / STATE_NAME).unlink(missing_ok=True)

    def _trainer(self, work: Assigned, stop: StopFlag) -> Trainer:
        config, loaded = self.config, work.loaded
        model = loaded.model

        def on_step(now: Progress, done: int, loss: float) -> None:
            in_stages = now.epoch == 1 and self.stages is not None and self.stages.learns
            phase = "fill" if in_stages or not model.backbone.released else "cached"
            hits = max(done - now.backbone_samples, 0)
            self._tell(StepDone(now.epoch, phase, done, len(loaded.train), loss, hits))

        return Trainer(
            config=config,
            model=model,
            optimizer=make_optimizer(model, config.optimizer),
            data=work.train,
            steps_per_epoch=-(-len(loaded.train) // config.batch_size),
            checkpoint=self.checkpoint / STATE_NAME,
            identity=run_identity(config, loaded) if self.team.leads else {},
            stop=stop,
            on_step=on_step,
            team=self.team,
            on_timed=lambda spans: self._tell(MiniBatchTimed(tuple(spans))),
        )

    def _epoch(self, work: Assigned, trainer: Trainer, progress: Progress) -> Progress:
        """Close an epoch: evaluate, keep the best weights, write the checkpoint."""
        model = work.loaded.model
        assert model.reader.cache is not None
        model.reader.cache.flush()
        self._check_finite(progress.epoch, progress.loss_sum)
        metrics = self._evaluate(work, progress.epoch).metrics if work.loaded.eval else {}
        self._check_finite(progress.epoch, metrics.get("loss", 0.0))
        self._release(work)
        record = epoch_record(progress, work.loaded.train, metrics)
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

    def _release(self, work: Assigned) -> None:
        """Free the backbone once the cache holds everything; say so if it cannot be freed."""
        model, rank = work.loaded.model, self.team.rank
        own = [data.examples[i] for data in (work.train, work.eval) for i in data.of(rank)]
        if not model.backbone.released and not release(model, own):
            log.warning("the cache could not hold every sample, so the backbone stays in memory and runs again")

    def _evaluate(self, work: Assigned, epoch: int) -> Evaluation:
        total, own = len(work.loaded.eval), len(work.eval.of(self.team.rank))

        def on_progress(done: int) -> None:
            done = done * total // own
            self._tell(StepDone(epoch, "evaluate", done, total, None, done))

        return evaluate(work.loaded.model, work.eval, on_progress, self.team)

    def _out_of_patience(self, progress: Progress) -> bool:
        patience = self.config.early_stopping
        return patience is not None and progress.best is not None and progress.stale >= patience

    def _finish(self, work: Assigned, progress: Progress, plan: dict[str, Any]) -> RunResult:
        """Evaluate the best weights, generate answers where the task is text, save everything."""
        output, loaded = self.config.output, work.loaded
        model, source = loaded.model, loaded.source
        final = self._evaluate(work, progress.epoch) if loaded.eval else Evaluation({}, [])
        devices = device_reports(self.team, model, time.perf_counter() - self._began, self._names)
        if source is None:
            return RunResult(output, {}, model)
        if self.config.emulate is None:
            save(self.config, model, source)
        if model.task.generates and loaded.eval and self.config.generation.eval_samples:
            written = self._generated(model, source)
            final = Evaluation(final.metrics | written.metrics, written.predictions)
        metrics = run_metrics(loaded, progress, plan, final.metrics, devices)
        if self.config.emulate is not None:
            metrics = {"emulated": True, **metrics}
        write_json(output / "plan.json", plan)
        write_json(output / "metrics.json", metrics)
        write_report(self.config, loaded, source, metrics, final.predictions, self._recorder)
        self._tell(RunFinished(metrics))
        return RunResult(output, metrics, model)

    def _generated(self, model: PacModel, source: Source) -> Evaluation:
        """Generated answers and their scores; the backbone is loaded again for them."""
        settings = self.config.generation
        model.reader.need_backbone("answers are to be generated")
        chosen = source.eval_samples[: settings.eval_samples]

        def on_progress(done: int) -> None:
            self._tell(StepDone(self.config.epochs, "generate", done, len(chosen), None, 0))

        return generated_metrics(
            model, source.encoder, chosen, settings, seed=self.config.seed, on_progress=on_progress
        )

    def _tell(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._phase = event.phase
        if self.team.leads:
            self._audience(event)
