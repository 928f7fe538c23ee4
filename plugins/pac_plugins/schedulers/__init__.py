"""Bundled schedulers: single, data-parallel, pipeline, pac, pac-hetero and exhaustive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pac_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:  # importing it would import torch, and hooks run whenever pac starts
    from pac_core.contracts.scheduler import Scheduler


def make_single() -> Scheduler:
    """A `SingleScheduler`."""
    from pac_plugins.schedulers.single import SingleScheduler

    return SingleScheduler()


def make_data_parallel() -> Scheduler:
    """A `DataParallelScheduler`."""
    from pac_plugins.schedulers.data_parallel import DataParallelScheduler

    return DataParallelScheduler()


def make_pipeline() -> Scheduler:
    """A `PipelineScheduler`."""
    from pac_plugins.schedulers.pipeline import PipelineScheduler

    return PipelineScheduler()


def make_pac() -> Scheduler:
    """A `PacScheduler`."""
    from pac_plugins.schedulers.pac import PacScheduler

    return PacScheduler()


def make_hetero() -> Scheduler:
    """A `HeteroScheduler`."""
    from pac_plugins.schedulers.hetero import HeteroScheduler

    return HeteroScheduler()


def make_exhaustive() -> Scheduler:
    """An `ExhaustiveScheduler`."""
    from pac_plugins.schedulers.exhaustive import ExhaustiveScheduler

    return ExhaustiveScheduler()


@hookimpl
def pac_register_schedulers(register: Register) -> None:
    register("single", make_single, summary="the whole model on the fastest device that has room for it")
    register("data-parallel", make_data_parallel, summary="the whole model on every device, rows by speed")
    register("pipeline", make_pipeline, summary="a stage for each device, layers by speed and memory")
    register("pac", make_pac, summary="stages of device groups, as the paper plans them (equations 2 to 6)")
    register(
        "pac-hetero", make_hetero, summary="the same for devices that differ: uneven groups, any order, links count"
    )
    register("exhaustive", make_exhaustive, summary="the best of all plans in the simulator, for up to 8 devices")
