"""What our runs add to the paper's, simulated on its devices: MRPC, three epochs, Jetson Nanos at 1000 Mbit/s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pac_core.contracts.cluster import Job, LayerProfile, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput
from pac_core.planning.icpp24.facts import Facts
from pac_core.planning.icpp24.models import SHAPES, TOKENS, job, profile
from pac_core.planning.icpp24.runs import Setting, cut, grouping
from pac_core.planning.make import plan
from pac_core.planning.simulate import Work, simulate
from pac_core.planning.work import NUMBER_BYTES
from pac_core.registry import Registry

DATASET = "mrpc"

DEVICES = (4, 8)
"""Four, with which the printed hours agree, and eight, the most that the paper had."""

REAL_TOKENS = 60.0
"""Mean of MRPC's pairs: 53 in BART's byte pairs, where the longest has 102, and some more in T5's pieces."""

HETERO = "pac-hetero"

QUANTISED = NUMBER_BYTES["int8"] / NUMBER_BYTES["float32"]
"""Of the bytes of float32 weights."""


ONCE = Work(1)
"""One sample and epoch, to be replaced by the data set's."""


@dataclass(frozen=True)
class Way:
    """A way to run PAC; as published unless it says otherwise.

    Attributes:
        why: what it does, in a line.
        work: how, with samples and epochs to be filled in.
        ragged: whether samples have their own length; else all are padded to 128 tokens.
        scheduler: that plans.
        quantised: whether the backbone's layers are held in int8. They are taken to compute as fast as in float32,
            as passes of many tokens nearly do (docs/benchmarks.md).
    """

    why: str
    work: Work = ONCE
    ragged: bool = False
    scheduler: str = "pac"
    quantised: bool = False


PUBLISHED = "PAC as published"
PADDED = "all, int8 cache, padded"

OURS = Work(1, prefill=True, overlaps=True)

INT8 = replace(OURS, entries="int8")

WAYS = {
    PUBLISHED: Way("trains while it fills; 128 tokens a sample; float32 entries, which travel before they are needed"),
    "no padding": Way(
        f"real tokens alone, {REAL_TOKENS:.0f} of 128: less to compute, to read and to send", ragged=True
    ),
    "prefill": Way("the backbone runs ahead, by itself; then an epoch more is cached", replace(OURS, overlaps=False)),
    "bfloat16 cache": Way("half of the bytes to read and to send", Work(1, entries="bfloat16")),
    "int8 cache": Way("27 percent of the bytes to read; entries still travel as float32", Work(1, entries="int8")),
    "overlapped spreading": Way("entries travel while the first cached epoch trains", Work(1, overlaps=True)),
    HETERO: Way("plans with messages, and with the memory of what is in flight", scheduler=HETERO),
    "int8 backbone": Way("27 percent of the layers' weights: fewer stages", quantised=True),
    "all, bfloat16 cache": Way("all of these but the int8 backbone", replace(OURS, entries="bfloat16"), True, HETERO),
    "all, int8 cache": Way("likewise", INT8, True, HETERO),
    "all, int8 cache, train-while-fill": Way(
        "likewise, without the prefill", replace(INT8, prefill=False), True, HETERO
    ),
    PADDED: Way("likewise, as published padded to 128 tokens", INT8, False, HETERO),
    "all, int8 cache and backbone": Way("all of them", INT8, True, HETERO, True),
}
"""By name; the first is what the others are compared with."""


@dataclass(frozen=True)
class Beyond:
    """Hours of each way.

    Attributes:
        paper: printed hours by model.
        hours: by number of devices, way and model; None if it does not fit.
    """

    paper: Mapping[str, float]
    hours: Mapping[int, Mapping[str, Mapping[str, float | None]]]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data: hours, and how many times as fast as printed and as our prediction of the paper."""
        return {
            str(devices): {
                way: {model: self._cell(devices, model, found) for model, found in by_model.items()}
                for way, by_model in by_way.items()
            }
            for devices, by_way in self.hours.items()
        }

    def _cell(self, devices: int, model: str, found: float | None) -> dict[str, float | None]:
        published = self.hours[devices][PUBLISHED][model]
        return {
            "hours": found,
            "times_paper": found and self.paper[model] / found,
            "times_published": found and published and published / found,
        }


def beyond(setting: Setting, facts: Facts, registry: Registry) -> Beyond:
    """All ways; those of a scheduler that is not installed are planned as published. Plans are those for 128 tokens."""
    there = registry.names("schedulers")
    ways = {
        name: way if way.scheduler in there else replace(way, scheduler="pac")
        for name, way in WAYS.items()
        if way.scheduler in there or name != HETERO
    }

    @cache
    def planned(model: str, devices: int, scheduler: str, quantised: bool) -> Plan | None:
        try:
            return _plan(_profile(model, quantised), scheduler, setting, devices, registry)
        except BadInput:
            return None

    def hours(model: str, devices: int, way: Way) -> float | None:
        found = planned(model, devices, way.scheduler, way.quantised)
        return None if found is None else _hours(found, model, way, setting, facts)

    return Beyond(
        {model: facts.hours(f"{model}/pac/{DATASET}") for model in SHAPES},
        {
            devices: {name: {model: hours(model, devices, way) for model in SHAPES} for name, way in ways.items()}
            for devices in DEVICES
        },
    )


def _plan(made: Profile, scheduler: str, setting: Setting, devices: int, registry: Registry) -> Plan:
    cluster, work = setting.cluster(devices), job(setting.batch * devices, None)
    if scheduler != "pac":
        return plan(made, cluster, work, scheduler, registry)
    groups = grouping(made, setting, devices, registry)
    return cut(made, cluster, replace(work, micro_batch_size=setting.rows * max(groups)), groups)


def _hours(found: Plan, model: str, way: Way, setting: Setting, facts: Facts) -> float:
    tokens = REAL_TOKENS if way.ragged else TOKENS
    own = Job(setting.batch * found.size, None, tokens, TOKENS)
    work = replace(way.work, samples=facts.samples(DATASET), epochs=facts.epochs(DATASET))
    cluster = setting.cluster(found.size)
    return simulate(found, _profile(model, way.quantised), cluster, own, work).seconds / 3600


def _profile(model: str, quantised: bool) -> Profile:
    made = profile(model, "pac")

    def layer(given: LayerProfile) -> LayerProfile:
        return replace(given, weight_bytes=round(QUANTISED * given.weight_bytes))

    if not quantised:
        return made
    return replace(made, layers={stream: tuple(map(layer, layers)) for stream, layers in made.layers.items()})
