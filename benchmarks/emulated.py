"""Emulated Jetson Nanos, on hosts of their own with links of a home's rates, against what the simulator predicts.

    python benchmarks/emulated.py --output emulated.json

Eight processes stand for eight devices: each in a network namespace of its own, linked by `tc tbf` at the rate given,
over zmq with CURVE, with a cache folder of its own. They wait instead of computing, for as long as the device card
predicts; all messages, the cache and the schedule are real. The first of them leads. Every plan runs an epoch in the
stages and two from the cache. Needs root, to make the namespaces.

Compared are, for each plan and rate, the seconds of each epoch as ``metrics.json`` has them (the first with the setting
of scales, the second with the spreading of entries that goes on beside it, the third alone), and the bytes that all
devices have sent. Bandwidth and latency of the links are measured, and the simulator is told the lowest bandwidth and
the median latency; nothing else is fitted. ``cpu`` is the mean share of this machine's cores that was in use during a
run, all that else went on there included: where it comes near 1, processors and not links are what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig

from pac_core.addresses import join_address
from pac_core.contracts.adapter import ParallelAdapterConfig
from pac_core.contracts.cluster import Cluster, Job, Link, Profile
from pac_core.contracts.scheduler import Plan, ScheduleName, StagePlan
from pac_core.keys import KeyFolder
from pac_core.planning.beginning import gathered, seconds_of
from pac_core.planning.cards import card
from pac_core.planning.cost import costs, places
from pac_core.planning.entries import owned_by
from pac_core.planning.phases import Run
from pac_core.planning.profile import analytic_profile
from pac_core.planning.simulate import Work, simulate
from pac_core.registry import Registry
from pac_core.testing.hollow import save_hollow
from pac_core.testing.hosts import Host, Network, network
from pac_core.testing.tiny import WORDS
from pac_core.weights import describe

CARD = "jetson-nano"
LAYERS = 12
EPOCHS = 3
PORT = 7077


@dataclass(frozen=True)
class Shape:
    """Of a plan: rows of a micro-batch by stage and device, micro-batches of a batch, and the schedule."""

    rows: tuple[tuple[int, ...], ...]
    micro_batches: int
    schedule: ScheduleName = "1f1b"

    def plan(self, names: Sequence[str]) -> Plan:
        """With layers in equal shares."""
        given, count = iter(names), len(self.rows)
        ends = [round(LAYERS * i / count) for i in range(count + 1)]
        stages = tuple(
            StagePlan({"encoder": (first, last)}, tuple(next(given) for _ in rows), rows)
            for rows, first, last in zip(self.rows, ends, ends[1:])
        )
        return Plan(stages, self.micro_batches, self.schedule)

    @property
    def devices(self) -> int:
        return sum(map(len, self.rows))


SHAPES = {
    "2 data-parallel": Shape(((8, 8),), 1),
    "4 data-parallel": Shape(((4,) * 4,), 1),
    "8 data-parallel": Shape(((2,) * 8,), 1),
    "2 stages": Shape(((4,),) * 2, 4),
    "4 stages": Shape(((2,),) * 4, 8),
    "8 stages": Shape(((2,),) * 8, 8),
    "2 x 2": Shape(((2, 2),) * 2, 4),
    "4 x 2": Shape(((2, 2),) * 4, 4),
    "3 and 1, uneven rows": Shape(((3, 1), (2, 2)), 4),
    "4 stages, gpipe": Shape(((2,),) * 4, 8, "gpipe"),
}
"""By name. Every batch has 16 rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[1000, 128], help="Mbit/s")
    parser.add_argument("--plans", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=64, help="of each sample")
    parser.add_argument("--folder", type=Path, default="/dev/shm", help="for the caches; not on a disk that all share")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pac-emulated-", dir=options.folder) as scratch:
        result = measure(options, Path(scratch))
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All plans at all rates."""
    save_hollow(folder / "model", BertConfig(num_hidden_layers=LAYERS))
    write_data(folder / "train.jsonl", options.samples, options.tokens)
    profile = profile_of(folder / "model")
    size = max(SHAPES[name].devices for name in options.plans)
    runs = []
    with network(size) as lan, Devices(folder, lan) as devices:
        for rate in options.rates:
            lan.shape(rate)
            link = devices.link()
            print(f"{rate} Mbit/s: {link}", file=sys.stderr, flush=True)
            for name in options.plans:
                plan = SHAPES[name].plan(devices.names)
                found = devices.run(plan)
                predicted = predict(plan, profile, link, options)
                runs.append({"rate": rate, "plan": name, **compare(found, predicted)})
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    return {"samples": options.samples, "tokens": options.tokens, "runs": runs}


def write_data(file: Path, samples: int, tokens: int) -> None:
    """Texts of so many tokens, one of which begins it."""
    draw = random.Random(0)
    rows = ({"text": " ".join(draw.choices(WORDS, k=tokens - 1)), "label": "ab"[n % 2]} for n in range(samples))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def profile_of(model: Path) -> Profile:
    """Of the model with the default adapter."""
    info = describe(model, torch.float32, Registry()).info
    return analytic_profile(info, ParallelAdapterConfig(), "encoder", head=False)


class Devices:
    """Workers, each on a host of its own, and a leader that is started on the first host for each run."""

    def __init__(self, folder: Path, lan: Network) -> None:
        self.folder = folder
        self.hosts = lan.hosts
        self.names = [f"nano{number}" for number in range(len(self.hosts))]
        self.runs = 0
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Devices:
        from pac_plugins.transports import new_keys

        folders = [KeyFolder(self.folder / "keys" / name) for name in self.names]
        keys = [own.make(name, new_keys) for own, name in zip(folders, self.names)]
        for own in folders:
            for name, key in zip(self.names, keys):
                own.allow(key, name, "home")
        leader = join_address(self.hosts[0].address, PORT)
        for name, host in zip(self.names[1:], self.hosts[1:]):
            given = ["worker", "--leader", leader, "--keys", str(self.folder / "keys" / name), "--threads", "1"]
            with open(self.folder / f"{name}.log", "wb") as log:
                self.workers.append(self.start(host, name, *given, "--emulate", CARD, stdout=log, stderr=log))
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(30)

    def start(self, host: Host, name: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """``pac`` on a host."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        own = {"HOME": str(home), "PAC_CACHE_DIR": str(home / "cache"), "OMP_NUM_THREADS": "1"}
        command = host.command(sys.executable, "-W", "ignore", "-m", "pac_core.cli", *arguments)
        return subprocess.Popen(command, env={**os.environ, **own}, cwd=home, **options)

    def cluster(self, count: int) -> Path:
        """A cluster file of the first ``count`` devices."""
        file = self.folder / "cluster.yaml"
        leader = join_address(self.hosts[0].address, PORT)
        devices = [{"name": name} for name in self.names[1:count]] + [{"name": self.names[0], "threads": 1}]
        text = {"leader": leader, "keys": str(self.folder / "keys" / self.names[0]), "devices": devices, "wait": 120}
        file.write_text(json.dumps(text), encoding="utf-8")
        return file

    def link(self) -> Link:
        """The links' bandwidth and latency, as measured by ``pac devices``."""
        cluster = str(self.cluster(len(self.names)))
        asked = self.start(self.hosts[0], self.names[0], "devices", "--cluster", cluster, "--json", stdout=-1)
        found = json.loads(asked.communicate()[0])["devices"]
        links = [device["link"] for device in found if device["link"]]
        rate = min(8 * link["bytes_per_second"] for link in links)
        return Link(rate, statistics.median(link["latency_seconds"] for link in links))

    def run(self, plan: Plan) -> dict[str, Any]:
        """A run by ``plan``, with empty caches; what it reports, and the share of the processors that was in use."""
        self.runs += 1
        file, output = self.folder / "plan.json", self.folder / f"run{self.runs}"
        file.write_text(json.dumps(plan.to_json()), encoding="utf-8")
        given = {
            "model": str(self.folder / "model"),
            "train": str(self.folder / "train.jsonl"),
            "output": str(output),
            "devices": str(self.cluster(plan.size)),
            "plan": str(file),
            "emulate": CARD,
            "fill": "train-while-fill",
            "epochs": EPOCHS,
            "batch_size": plan.micro_batch_size * plan.micro_batches,
            "dtype": "float32",
        }
        config = self.folder / "run.yaml"
        config.write_text(json.dumps(given), encoding="utf-8")
        with processors() as used:
            leader = self.start(self.hosts[0], self.names[0], "finetune", str(config), "--json", stdout=-1)
            report = json.loads(leader.communicate()[0])
        for name in self.names:
            shutil.rmtree(self.folder / name / "cache", ignore_errors=True)
        return {**report, "cpu": used[0]}


@contextmanager
def processors() -> Iterator[list[float]]:
    """Within it, the mean share of this machine's processors that is in use; known at the end."""
    found: list[float] = []
    before = ticks()
    yield found
    used, idle = (after - first for after, first in zip(ticks(), before))
    found.append(used / (used + idle))


def ticks() -> tuple[int, int]:
    """Of all processors so far: in use, and idle."""
    user, nice, system, idle, iowait, *others = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return user + nice + system + sum(others[:2]), idle + iowait


def predict(plan: Plan, profile: Profile, link: Link, options: argparse.Namespace) -> dict[str, Any]:
    """What the simulator says of the same run."""
    names = [name for stage in plan.stages for name in stage.devices]
    cluster = Cluster(tuple(card(CARD).device(name) for name in names), default=link)
    batch = plan.micro_batch_size * plan.micro_batches
    job = Job(batch, plan.micro_batch_size, options.tokens, options.tokens)
    work = Work(
        options.samples,
        EPOCHS,
        entries="bfloat16",
        overlaps=True,
        hands_out=True,
        scaled=options.samples,
        sums_beside=True,
    )
    timeline = simulate(plan, profile, cluster, job, work)
    found = costs(profile, job)
    slices, owned = [places(profile, stage) for stage in plan.stages], owned_by(plan, cluster, job.batch_size)
    run = Run(plan, found, slices, cluster, job, work, owned)
    phases = {phase.name: phase.seconds for phase in timeline.phases}
    cached = phases["cached"] / (EPOCHS - 1)
    gather = seconds_of(run, gathered(run))
    seconds = {
        "fill": phases["scales"] + phases["fill"] + gather,
        "spread": phases["spread"] - gather + cached,
        "cached": cached,
    }
    return {"seconds": seconds, "bytes": timeline.bytes_sent, "phases": [asdict(phase) for phase in timeline.phases]}


def compare(found: Mapping[str, Any], predicted: Mapping[str, Any]) -> dict[str, Any]:
    """Both, side by side."""
    seconds = dict(zip(predicted["seconds"], (epoch["seconds"] for epoch in found["epochs"])))
    total = sum(device["bytes_sent"] for device in found["devices"])
    return {
        "cpu": found["cpu"],
        "seconds": seconds,
        "bytes": total,
        "sent": [epoch["bytes_sent"] for epoch in found["epochs"]],
        "predicted": predicted,
        "ratios": {
            **{name: taken / predicted["seconds"][name] for name, taken in seconds.items()},
            "all": sum(seconds.values()) / sum(predicted["seconds"].values()),
            "bytes": total / predicted["bytes"],
        },
    }


if __name__ == "__main__":
    main()
