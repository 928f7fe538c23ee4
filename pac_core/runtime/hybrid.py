"""Steps 4 and 5 of a run whose plan has stages: epoch 1 over slices of the backbone, then whole entries at owners.

Every device of the plan calls the same functions with the same samples, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pac_core.batches import Dataset
from pac_core.contracts.backbone import Backbone
from pac_core.contracts.scheduler import Plan
from pac_core.errors import RunFailed
from pac_core.examples import Example, Segment
from pac_core.malloc import return_large_blocks
from pac_core.model import PacModel
from pac_core.runtime.fill import calibrate, calibration_samples, regression_targets
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.job import PATIENCE
from pac_core.runtime.optimizer import moments, set_moments
from pac_core.runtime.parts import Part
from pac_core.runtime.passes import PASS_TOKENS, PASSES, own_rows, widened
from pac_core.runtime.pipeline import Pipeline
from pac_core.runtime.scales import calibrate_stage, features_of
from pac_core.runtime.spread import Holding, spread_entries, spread_state
from pac_core.runtime.spreading import Arrived, Spreading
from pac_core.runtime.stage import Slices, Stage, bind_share, chain, cut_model, head_slice, stage_taps
from pac_core.runtime.team import Replicas
from pac_core.taps import TapReader, of_stream


@dataclass(frozen=True, eq=False)
class Device:
    """What one device of a plan holds until epoch 1 is over.

    Attributes:
        plan: who runs what.
        team: the devices.
        model: with the whole side network and the cache of whole entries; of the backbone at most the head.
        pipeline: runs this device's stage, which has a model of its own, cut to it.
        holding: this device's share of the cache, and the cache of whole entries.
    """

    plan: Plan
    team: Replicas
    model: PacModel
    pipeline: Pipeline
    holding: Holding

    @property
    def stage(self) -> Stage:
        return self.pipeline.stage

    def given(self, batch: Sequence[Example]) -> Sequence[Example]:
        """What `Pipeline` is given of a batch: all on the first stage, nothing on others, which are sent their rows."""
        return batch if self.pipeline.number == 0 else ()


def open_stage(plan: Plan, team: Replicas, model: PacModel, open_layers: Callable[[Slices], Backbone]) -> Device:
    """Load this device's slice of the backbone, and cut the side network to it.

    Args:
        model: on a backbone that holds no layers; afterwards it has the language-model head, for tasks that need it,
            and counts as released.
        open_layers: loads layers of the same backbone, as `BackboneSource.layers` says.

    Raises:
        BadInput: the plan is not for this model or this number of devices, or the side network cannot be cut so.
    """
    return_large_blocks()
    plan.check(chain(model.info, model.side.target))
    layers = plan.stages[plan.place(team.rank)[0]].layers
    share = None if model.cache is None else bind_share(model.cache, model, layers)
    whole = model.reader.cache
    if whole is None:
        raise ValueError("a run over stages needs a cache")
    own = cut_model(copy.deepcopy(model), layers)
    own.reader = TapReader(open_layers(layers), None, {})
    pipeline = Pipeline(plan, Stage(own, layers, share), team.transport, timeout=PATIENCE)
    if model.task.generates:
        model.reader.backbone = open_layers(head_slice(model))
    model.release_backbone()
    taps = [stage_taps(model.side, stage.layers) for stage in plan.stages]
    return Device(plan, team, model, pipeline, Holding(share, whole, taps))


def close_stage(device: Device) -> None:
    """Drop the slice of the backbone from memory."""
    device.stage.model.release_backbone()


def fill(
    device: Device,
    examples: Sequence[Example],
    owners: Sequence[int],
    stop: StopFlag,
    on_progress: Callable[[int, int], None],
    later: Sequence[Example] = (),
) -> int:
    """As `fill_shares`, and then bring each sample's whole entries to its owner; ``later`` as in `end_spread`."""
    samples = fill_shares(device, examples, owners, stop, on_progress)
    end_spread(device, begin_spread(device, examples, owners), examples, later)
    device.team.filled(device.holding.whole, stop)
    return samples


def fill_shares(
    device: Device,
    examples: Sequence[Example],
    owners: Sequence[int],
    stop: StopFlag,
    on_progress: Callable[[int, int], None],
    plan: Callable[[Sequence[int]], Sequence[int]] = lambda todo: (),
) -> int:
    """Run the backbone through the stages for every sample that its owner's cache lacks, unless the devices' shares of
    the cache have it. Returns for how many it was to run.

    Args:
        owners: for each sample the rank that works on it in later epochs.
        on_progress: told of samples done, and to do.
        plan: given the samples to do, returns those that a stopped fill had set out for; see
            `pac_core.taps.TapReader.fill`.

    Raises:
        KeyboardInterrupt: a stop was requested; what was filled is flushed, and is not run again.
        PeerLost: another device is gone; likewise.
        StoreFull: the cache has no room; what was filled stays.
    """
    todo = sorted({*_lacked_by_owners(device, examples, owners)} & _incomplete(device, examples))
    planned = sorted({*todo, *plan(todo)})
    needed = set(np.searchsorted(planned, todo).tolist())
    try:
        _run_backbone(device, [examples[i] for i in planned], stop, on_progress, needed=needed)
    finally:
        device.holding.whole.flush()  # and with it the share, which is in the same store
    device.team.filled(device.holding.whole, stop)
    return len(todo)


def begin_spread(
    device: Device, examples: Sequence[Example], owners: Sequence[int], order: Sequence[int] | None = None
) -> Spreading:
    """Begin to bring the whole entries of samples to those owners that lack them, on a thread of its own. No other
    spreading may be under way.

    Args:
        order: all indices of ``examples``, those that are needed first in front; as they stand if None.

    Raises:
        PeerLost: another device is gone.
    """
    lacked = {*_lacked_by_owners(device, examples, owners)}
    chosen = [i for i in (range(len(examples)) if order is None else order) if i in lacked]
    there = {i for i, owner in enumerate(owners) if owner == device.team.rank} - lacked

    def work(arrived: Arrived) -> list[int]:
        return _spread_from(device, device.holding, device.plan, examples, owners, chosen, arrived)

    return Spreading(work, there)


def end_spread(
    device: Device, spreading: Spreading, examples: Sequence[Example], later: Sequence[Example] = ()
) -> None:
    """Wait until all entries are at their owners, and drop the devices' shares of them.

    Args:
        later: samples that are yet to be spread: shares of texts that are among them too stay.

    Raises:
        RunFailed: an entry is gone.
        PeerLost, StoreFull: as `fill_shares`; what has arrived is kept.
    """
    holding = device.holding
    absent = spreading.finish()
    holding.whole.flush()
    lost = int(device.team.total([len(absent)])[0])
    if lost:
        raise RunFailed(
            f"the cache lost entries of {lost} samples while the backbone ran; the same command with --resume computes "
            "them again; if it has a budget (cache.budget_bytes), raise that first"
        )
    if holding.share is not None and holding.share.namespace_id != holding.whole.namespace_id:
        over, needed = (_segments_of(device, samples) for samples in (examples, later))
        holding.share.delete(holding.share.keys([over[content] for content in over.keys() - needed.keys()]))


def set_scales(device: Device, examples: Sequence[Example], stop: StopFlag) -> None:
    """Set the model's scales before training by running some samples through the stages, whose entries then are in the
    shares. Texts read apart are matched in all taps, so theirs are set with `set_scales_from_cache`.

    Raises:
        KeyboardInterrupt, PeerLost: as `fill`.
    """
    chosen = [examples[i] for i in calibration_samples(device.model, examples)]
    keep = partial(features_of, device.stage.model)
    features = _run_backbone(device, chosen, stop, lambda done, total: None, keep)
    calibrate_stage(device.pipeline, features, regression_targets(device.model, examples))
    gather(device)


def set_scales_from_cache(device: Device, examples: Sequence[Example]) -> None:
    """Set the model's scales before training, once all shares are filled; the leader is brought the samples that it
    lacks.

    Raises:
        PeerLost: another device is gone.
    """
    chosen = [examples[i] for i in calibration_samples(device.model, examples)]
    leader = [0] * len(chosen)
    _spread_from(device, device.holding, device.plan, chosen, leader, _lacked_by_owners(device, chosen, leader))
    owners = np.zeros(len(examples), np.int64)
    calibrate(device.model, Dataset(examples, owners, owners, 1), device.team)
    device.team.align(device.model)


def gather(
    device: Device, own: torch.optim.Optimizer | None = None, whole: torch.optim.Optimizer | None = None
) -> None:
    """Give every device's whole model the weights and scales of all stages, and ``whole``, its optimiser, the moments
    that the stages' optimisers ``own`` have gathered.

    Raises:
        PeerLost: another device is gone.
    """
    stage, transport = device.stage.model, device.pipeline.transport
    device.model.load_state_dict(spread_state(transport, device.plan, stage.state_dict(), timeout=PATIENCE))
    if whole is None:
        return
    mine = {} if own is None else moments(stage, own)
    set_moments(device.model, whole, spread_state(transport, device.plan, mine, timeout=PATIENCE))


def _run_backbone(
    device: Device,
    examples: Sequence[Example],
    stop: StopFlag,
    on_progress: Callable[[int, int], None],
    keep: Callable[[Part], Tensor] | None = None,
    needed: Set[int] | None = None,
) -> list[Tensor]:
    """Run the backbone through the stages over samples, the longest first, so that there is next to no padding; returns
    what `Pipeline.fill` does. Batches without one of the ``needed`` samples, if these are given, are left out."""
    stages = len(device.plan.stages)
    rows = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    tokens = min(PASS_TOKENS, max(sum(map(len, examples)) // (PASSES * stages), 1))
    kept: list[Tensor] = []
    done = 0
    while done < len(rows):
        plan = widened(device.plan, tokens // len(examples[rows[done]]))
        chosen = rows[done : done + plan.micro_batch_size * PASSES * stages]
        done += len(chosen)
        if needed is not None and needed.isdisjoint(chosen):
            continue
        batch = [examples[i] for i in chosen]
        pipeline = Pipeline(plan, device.stage, device.pipeline.transport, timeout=PATIENCE)
        kept += pipeline.fill(len(batch), device.given(batch), keep)
        device.model.reader.counters.backbone_samples += own_rows(plan, device.team.rank, len(batch))
        on_progress(done, len(rows))
        if device.team.total([stop.requested])[0]:
            raise KeyboardInterrupt
    return kept


def _spread_from(
    device: Device,
    holding: Holding,
    plan: Plan,
    examples: Sequence[Example],
    owners: Sequence[int],
    chosen: Sequence[int],
    on_arrived: Arrived = lambda samples: None,
) -> list[int]:
    """`spread_entries` of the ``chosen`` examples."""
    absent = spread_entries(
        device.pipeline.transport,
        plan,
        holding,
        [examples[i] for i in chosen],
        [owners[i] for i in chosen],
        timeout=PATIENCE,
        on_stored=lambda places: on_arrived([chosen[place] for place in places]),
    )
    return [chosen[place] for place in absent]


def _lacked_by_owners(device: Device, examples: Sequence[Example], owners: Sequence[int]) -> list[int]:
    """Indices of the samples that are not whole in their owner's cache."""
    mine = [i for i, owner in enumerate(owners) if owner == device.team.rank]
    marks = torch.zeros(len(examples), dtype=torch.int32)
    marks[[mine[i] for i in device.model.reader.missing([examples[i] for i in mine])]] = 1
    return _summed(device, marks).nonzero()[:, 0].tolist()


def _incomplete(device: Device, examples: Sequence[Example]) -> set[int]:
    """Indices of the samples of which a stage's taps are on none of its devices."""
    marks = torch.zeros(len(device.plan.stages), len(examples), dtype=torch.int32)
    marks[device.pipeline.number] = 1
    marks[device.pipeline.number, device.stage.missing(examples)] = 0
    return set((_summed(device, marks) == 0).any(0).nonzero()[:, 0].tolist())


def _segments_of(device: Device, examples: Sequence[Example]) -> dict[bytes, Segment]:
    """The segments of which this device's share of the cache has entries, by their content."""
    streams = device.holding.stages[device.pipeline.number]
    return {segment.content: segment for e in examples for s in streams for segment in of_stream(e, s)}


def _summed(device: Device, marks: Tensor) -> Tensor:
    """``marks`` summed over all devices."""
    if marks.numel():
        device.pipeline.transport.all_reduce(marks, timeout=PATIENCE)
    return marks
