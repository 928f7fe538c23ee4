"""Step 6 of a run: the optimiser steps of one epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pac_core.batches import Dataset, epoch_batches
from pac_core.config import RunConfig
from pac_core.contracts.adapter import Taps
from pac_core.examples import Example
from pac_core.hardware import SHORT, fast_products
from pac_core.model import PacModel
from pac_core.runtime.checkpoint import Progress, save_checkpoint
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.optimizer import clip, cut, lr_factor, set_rates
from pac_core.runtime.team import ALONE, Team
from pac_core.spans import Span

CHECKPOINT_SECONDS = 60.0
REPORT_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Trainer:
    """What the steps of every epoch share.

    Attributes:
        checkpoint: file that a stopped run resumes from.
        identity: what must agree to resume.
        on_step: told of progress, at most a few times a second: samples done and mean loss.
        team: the devices that make every step together.
        ready: called with the samples of a micro-batch before their entries are read; returns once they are there.
        on_timed: told, at the leader, what all devices did during one mini-batch that ran through stages.
    """

    config: RunConfig
    model: PacModel
    optimizer: torch.optim.Optimizer
    data: Dataset
    steps_per_epoch: int
    checkpoint: Path
    identity: dict[str, object]
    stop: StopFlag
    on_step: Callable[[Progress, int, float], None]
    team: Team = ALONE
    ready: Callable[[Sequence[int]], None] = lambda samples: None
    on_timed: Callable[[Sequence[Span]], None] = lambda spans: None


def train_epoch(trainer: Trainer, progress: Progress) -> Progress:
    """Run the steps of ``progress.epoch`` that are left; returns the progress at its end.

    Order and dropout depend only on seed, epoch and step, so a resumed epoch ends with the same weights.

    Raises:
        KeyboardInterrupt: a stop was requested; the checkpoint was written.
        PeerLost: another device is gone.
    """
    config, model, team = trainer.config, trainer.model, trainer.team
    batches = epoch_batches(trainer.data, config.seed, progress.epoch)
    model.train()
    rate = lr_factor(config.optimizer, trainer.steps_per_epoch * config.epochs)
    base = progress.backbone_samples - model.reader.counters.backbone_samples
    unsent = progress.bytes_sent - team.bytes_sent
    done = sum(map(len, batches[: progress.step]))
    saved = shown = time.monotonic()
    began = time.perf_counter() - progress.seconds
    for batch, micro in steps(trainer, batches[progress.step :]):
        seed_dropout(step_seed(config.seed, progress.epoch, progress.step, team.rank))
        loss = optimizer_step(
            trainer, batch, micro, rate(trainer.steps_per_epoch * (progress.epoch - 1) + progress.step)
        )
        done += len(batch)
        progress = replace(
            progress,
            step=progress.step + 1,
            loss_sum=progress.loss_sum + loss,
            seconds=time.perf_counter() - began,
            backbone_samples=base + model.reader.counters.backbone_samples,
            bytes_sent=unsent + team.bytes_sent,
        )
        now = time.monotonic()
        if now - shown > REPORT_SECONDS:
            shown = now
            trainer.on_step(progress, done, progress.loss_sum / progress.step)
        stops = team.stops(trainer.stop)
        if team.leads and (stops or now - saved > CHECKPOINT_SECONDS):
            save_checkpoint(trainer.checkpoint, model, trainer.optimizer, progress, trainer.identity)
            saved = time.monotonic()
        if stops:
            raise KeyboardInterrupt
    trainer.on_step(progress, done, progress.loss_sum / max(progress.step, 1))
    return progress


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Seed of a step's dropout on a device."""
    own = (rank,) if rank else ()
    return int(np.random.SeedSequence((seed, epoch, step, *own)).generate_state(1)[0])


def seed_dropout(seed: int) -> None:
    """What `torch.manual_seed` does for the devices in use; that itself takes half a millisecond where it keeps the
    call's traceback for a GPU that may come."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


Micro = tuple[Sequence[Example], dict[str, Taps]]


def steps(trainer: Trainer, batches: Sequence[list[int]]) -> Iterator[tuple[list[Example], Iterator[Micro]]]:
    """Each batch with an iterator over the micro-batches of this device's part, and their taps."""
    own = [[i for i in batch if trainer.data.owners[i] == trainer.team.rank] for batch in batches]
    parts = [[[b[i] for i in piece] for piece in cut(len(b), trainer.config.micro_batch_size)] for b in own]
    wanted = ([trainer.data.examples[i] for i in piece] for pieces in parts for piece in pieces)
    found = trainer.model.reader.read_each(wanted)
    for batch, pieces in zip(batches, parts):
        yield [trainer.data.examples[i] for i in batch], (_taken(trainer, found, piece) for piece in pieces)


def _taken(trainer: Trainer, found: Iterator[Micro], piece: Sequence[int]) -> Micro:
    trainer.ready(piece)
    return next(found)


def _tokens(taps: dict[str, Taps]) -> int:
    """Tokens of the larger stream; 0 for rows so long that `fast_products` would do harm."""
    if max(t.rows.width for t in taps.values()) > SHORT:
        return 0
    return max(t.values.shape[1] for t in taps.values())


def optimizer_step(trainer: Trainer, batch: Sequence[Example], micro: Iterator[Micro], rate: float) -> float:
    """Accumulate the gradient of the batch's mean loss over its micro-batches and over the team, then step at ``rate``
    times the peak learning rate; returns the loss.

    However a batch is cut, the gradient is the same: parts weigh by the predictions they hold, and those without any
    are left out.

    Args:
        batch: the whole of it.
        micro: this device's part of it.
    """
    model = trainer.model
    total, loss = model.learnt(batch), 0.0
    trainer.optimizer.zero_grad(set_to_none=False)
    if trainer.config.micro_batch_size is None:
        trainer.team.begin(model)
    for part, taps in micro:
        learnt = model.learnt(part)
        if not learnt:
            continue
        with fast_products(_tokens(taps)):
            scaled = model.loss(part, taps) * (learnt / total)
            scaled.backward()  # type: ignore[no-untyped-call]
        loss += scaled.item()
    loss = trainer.team.reduce(trainer.optimizer, loss, trainer.stop.requested)
    clip(trainer.optimizer, trainer.config.optimizer.max_grad_norm)
    set_rates(trainer.optimizer, rate)
    trainer.optimizer.step()
    return loss
