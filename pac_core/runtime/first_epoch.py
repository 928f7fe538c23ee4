"""Epoch 1 in the stages of a plan, where it trains while the cache is filled."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from pac_core.batches import epoch_batches
from pac_core.runtime.checkpoint import Progress, save_checkpoint
from pac_core.runtime.hybrid import Device, gather
from pac_core.runtime.job import PATIENCE
from pac_core.runtime.optimizer import lr_factor, make_optimizer, moments, set_moments
from pac_core.runtime.timeline import gather_spans
from pac_core.runtime.train import (
    CHECKPOINT_SECONDS,
    REPORT_SECONDS,
    Trainer,
    seed_dropout,
    step_seed,
)
from pac_core.spans import Span


def train_epoch(device: Device, trainer: Trainer, progress: Progress) -> Progress:
    """Run the steps of epoch 1 that are left through the stages, each of which trains its part of the side network with
    an optimiser of its own; returns the progress at its end, when all devices have the whole model and optimiser.

    Each step is that of `pac_core.runtime.train.train_epoch` over the same batch, and the checkpoint the same too.

    Raises:
        KeyboardInterrupt: a stop was requested; the checkpoint was written.
        PeerLost: another device is gone.
        BadInput: texts are read apart.
    """
    config, pipeline = trainer.config, device.pipeline
    optimizer = _enter_stage(device, trainer)
    batches = epoch_batches(trainer.data, config.seed, progress.epoch)
    rate = lr_factor(config.optimizer, trainer.steps_per_epoch * config.epochs)
    done = sum(map(len, batches[: progress.step]))
    saved = shown = time.monotonic()
    began, sent = time.perf_counter() - progress.seconds, device.team.sent
    pipeline.stage.model.train()
    left = batches[progress.step :]
    timed = min(len(left), 2) - 1  # the second, if there is one: the first warms up
    for number, batch in enumerate(left):
        examples = [trainer.data.examples[i] for i in batch]
        seed_dropout(step_seed(config.seed, progress.epoch, progress.step, device.team.rank))
        recording: AbstractContextManager[list[Span]] = pipeline.recorded() if number == timed else nullcontext([])
        with recording as spans:
            loss = pipeline.step(
                optimizer,
                len(batch),
                device.given(examples),
                rate=rate(progress.step),
                max_norm=config.optimizer.max_grad_norm,
                asks=(trainer.stop.requested, device.team.leads and time.monotonic() - saved > CHECKPOINT_SECONDS),
            )
        if number == timed:
            trainer.on_timed(gather_spans(pipeline.transport, device.plan, spans, timeout=PATIENCE))
        done += len(batch)
        progress = replace(
            progress,
            step=progress.step + 1,
            loss_sum=progress.loss_sum + loss,
            seconds=time.perf_counter() - began,
            backbone_samples=progress.backbone_samples + len(batch),
        )
        stops, saves = map(bool, pipeline.asked)
        if stops or saves:
            progress, sent = _count_bytes(device, progress, sent)
            _checkpoint(device, trainer, optimizer, progress)
            saved = time.monotonic()
        if stops:
            raise KeyboardInterrupt
        if time.monotonic() - shown > REPORT_SECONDS:
            shown = time.monotonic()
            trainer.on_step(progress, done, progress.loss_sum / progress.step)
    gather(device, optimizer, trainer.optimizer)
    progress, _ = _count_bytes(device, replace(progress, seconds=time.perf_counter() - began), sent)
    trainer.on_step(progress, done, progress.loss_sum / max(progress.step, 1))
    return progress


def _enter_stage(device: Device, trainer: Trainer) -> torch.optim.Optimizer | None:
    """Give this stage its part of the whole model and optimiser, which may come from a checkpoint; returns its own
    optimiser, None for a stage without parameters."""
    part, whole = device.stage.model, device.model
    state = whole.state_dict()
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    if not list(part.parameters()):
        return None
    optimizer = make_optimizer(part, trainer.config.optimizer)
    if trainer.optimizer.state:
        set_moments(part, optimizer, moments(whole, trainer.optimizer))
    return optimizer


def _checkpoint(device: Device, trainer: Trainer, optimizer: torch.optim.Optimizer | None, progress: Progress) -> None:
    gather(device, optimizer, trainer.optimizer)
    device.holding.whole.flush()
    if device.team.leads:
        save_checkpoint(trainer.checkpoint, device.model, trainer.optimizer, progress, trainer.identity)
    device.team.total([0])  # nobody goes on, or ends, before it is written


def _count_bytes(device: Device, progress: Progress, before: int) -> tuple[Progress, int]:
    """``progress`` with what all devices have sent since ``before``, and what this one has sent so far."""
    sent = device.team.sent
    (total,) = device.team.total([sent - before])
    return replace(progress, bytes_sent=progress.bytes_sent + int(total)), sent
