"""How good and how fast the schedulers are, in the simulator.

    python benchmarks/planners.py --cases 300        random small clusters against the best of all plans
    python benchmarks/planners.py --gain             mixed clusters from device cards against the paper's planner
    python benchmarks/planners.py --growth           planning time up to 1,000 devices

Random cases have up to 6 devices and 8 layers, alike or not, memory ample or tight, links known or not, shared or not.
The optimum is found by looking for a plan that beats the one of ``pac-hetero``; a gap is how much longer a mini-batch
takes than with the best. Times of planning are processor time of one thread; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, LayerProfile, Link, Profile
from pac_core.contracts.scheduler import Plan
from pac_core.errors import BadInput
from pac_core.planning.cards import card
from pac_core.planning.icpp24.models import BLOCKS, TOKENS, job, profile
from pac_core.planning.make import plan
from pac_core.planning.simulate import Work, simulate
from pac_plugins.schedulers.exhaustive import faster_plan

MIB = 1 << 20
OTHERS = ("pac", "data-parallel", "pipeline", "single")
ENOUGH = 1.02

CLUSTERS = {
    "2 Nano, TX2, Xavier NX": (("jetson-nano", "jetson-nano", "jetson-tx2", "xavier-nx"), Link(1e9, 5e-4), False),
    "laptop, 3 Pi 5": (("laptop", *["raspberry-pi-5"] * 3), Link(1e9, 5e-4), False),
    "RTX 4070, 2 laptops, Wi-Fi": (("rtx-4070", "laptop", "laptop"), Link(2e8, 2e-3), True),
    "Orin Nano, 3 Nano": (("orin-nano", *["jetson-nano"] * 3), Link(1e9, 5e-4), False),
    "M2, laptop, 2 Pi 5, Wi-Fi": (("mac-m2", "laptop", "raspberry-pi-5", "raspberry-pi-5"), Link(2e8, 2e-3), True),
    "4 Nano, 2 TX2": ((*["jetson-nano"] * 4, "jetson-tx2", "jetson-tx2"), Link(1e9, 5e-4), False),
}
SAMPLES, BATCH, EPOCHS = 3668, 32, 3
"""Of MRPC; epochs as in the paper."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=0, help="random cases")
    parser.add_argument("--seed", type=int, default=0, help="number of the first one")
    parser.add_argument("--devices", type=int, default=6, help="most devices of a case")
    parser.add_argument("--layers", type=int, default=8, help="most layers of a case")
    parser.add_argument("--gain", action="store_true")
    parser.add_argument("--growth", action="store_true")
    given = parser.parse_args()
    if given.cases:
        search(range(given.seed, given.seed + given.cases), given.devices, given.layers)
    if given.gain:
        gain()
    if given.growth:
        growth()


def made(scheduler: str, model: Profile, cluster: Cluster, work: Job) -> Plan | None:
    """The plan, or None if nothing fits."""
    try:
        return plan(model, cluster, work, scheduler)
    except BadInput:
        return None


def seconds(found: Plan | None, model: Profile, cluster: Cluster, work: Job) -> float | None:
    """Simulated seconds of a mini-batch."""
    return None if found is None else simulate(found, model, cluster, work).step_s


def search(seeds: range, devices: int, layers: int) -> None:
    gaps: list[float] = []
    paper: list[float] = []
    refused, worse = 0, 0
    for seed in seeds:
        case = random_case(random.Random(seed), devices, layers)
        own = seconds(made("pac-hetero", *case), *case)
        better = faster_plan(*case, own * (1 - 1e-9) if own else float("inf"))
        if own is None:
            refused += 1
            if better is not None:
                print(f"case {seed}: pac-hetero finds nothing, and there is a plan")
            continue
        best = own if better is None else simulate(better, *case).step_s
        gaps.append(own / best)
        if own > ENOUGH * best:
            print(
                f"case {seed}: {own:.4f} s, and the best plan takes {best:.4f} s ({own / best:.3f} times)", flush=True
            )
        others = {name: seconds(made(name, *case), *case) for name in OTHERS}
        worse += any(other is not None and other < own * (1 - 1e-9) for other in others.values())
        if others["pac"] is not None:
            paper.append(others["pac"] / best)
    print(f"{len(gaps)} cases with a plan, {refused} in which nothing fits")
    _distribution("pac-hetero", gaps)
    _distribution("pac", paper)
    print(f"pac-hetero is worse than one of {', '.join(OTHERS)} in {worse}")


def _distribution(name: str, gaps: list[float]) -> None:
    within = sum(gap <= ENOUGH for gap in gaps)
    print(
        f"{name:<11} of {len(gaps)}: within 2 percent {within}, median {statistics.median(gaps):.4f}, "
        f"mean {statistics.mean(gaps):.4f}, worst {max(gaps):.4f} times the best"
    )


def random_case(rng: random.Random, most_devices: int, most_layers: int) -> tuple[Profile, Cluster, Job]:
    """A model, a cluster and a job."""
    count = rng.randint(2, most_layers)
    layers = tuple(_layer(rng) for _ in range(count)) if rng.random() < 0.4 else (_layer(rng),) * count
    cut = rng.randint(1, count - 1)
    streams = {"encoder": layers[:cut], "decoder": layers[cut:]} if rng.random() < 0.2 else {"one": layers}
    tables = {stream: rng.choice([0, 4 * MIB]) for stream in streams}
    model = Profile(streams, tables, rng.choice([0, 0, 4 * MIB]), rng.choice([1, 1, 1, 2]))
    devices = _devices(
        rng, rng.randint(2, most_devices), sum(layer.weight_bytes + layer.side_bytes for layer in layers)
    )
    links = {}
    if rng.random() < 0.4:
        pairs = [(a.name, b.name) for i, b in enumerate(devices) for a in devices[:i]]
        links = {
            pair: Link(rng.choice([1e7, 5e7, 2e8, 1e9]), rng.choice([1e-4, 1e-3, 5e-3]))
            for pair in pairs
            if rng.random() < 0.7
        }
    link = Link(rng.choice([2e7, 1e8, 1e9]), rng.choice([1e-4, 1e-3]))
    batch = rng.choice([4, 6, 8, 12, 16])
    size = rng.choice([None, None, batch, max(batch // 2, 1), max(batch // 4, 1), 3])
    return model, Cluster(devices, links, link, rng.random() < 0.35), Job(batch, size, 30.0, 64)


def _layer(rng: random.Random) -> LayerProfile:
    return LayerProfile(
        flops=rng.choice([1, 2, 3, 5, 9]) * 1e6,
        pair_flops=1e3,
        side_flops=rng.choice([2e5, 5e5]),
        weight_bytes=rng.randint(2, 6) * MIB,
        side_bytes=MIB,
        hidden_bytes=rng.choice([1024, 4096]),
        state_bytes=256,
        tap_bytes=1024,
        kept_bytes=rng.choice([1 << 12, 1 << 14, 1 << 15]),
        gradient_bytes=rng.choice([0, 1, 1, 3]) * MIB // 4,
    )


def _devices(rng: random.Random, count: int, whole: int) -> tuple[DeviceProfile, ...]:
    """Alike in a quarter of the cases; with room for ``whole`` model, a part of it, a part in all, or some of these."""
    kind = rng.choice(["ample", "tight", "mixed", "short"])

    def memory() -> int:
        room = {
            "ample": 4096 * MIB,
            "tight": rng.uniform(0.4, 1.3) * whole,
            "short": rng.uniform(1, 2.2) * whole / count,
        }
        return round(room.get(kind) or rng.choice([4096 * MIB, rng.uniform(0.3, 1.2) * whole]))

    def device(number: int) -> DeviceProfile:
        backward = None if rng.random() < 0.5 else rng.choice([1, 2, 4]) * 1e9
        return DeviceProfile(
            f"d{number}", rng.choice([1, 2, 3, 5, 8]) * 1e9, memory(), backward, rng.choice([0.0, 0.0, 1e-3])
        )

    alike = device(0) if rng.random() < 0.25 else None
    return tuple(device(i) if alike is None else replace(alike, name=f"d{i}") for i in range(count))


def llama_1b() -> Profile:
    """16 layers, width 2048, inner width 8192, 32 query and 8 key heads, 128,256 tokens, in bfloat16; reduction 8."""
    d, inner, side = 2048, 8192, 2048 // 8
    weights = 2 * d * d + 2 * d * d // 4 + 3 * d * inner
    trained = d * side + weights // 64
    layer = LayerProfile(
        flops=2.0 * weights,
        pair_flops=4.0 * d,
        side_flops=6.0 * trained,
        weight_bytes=2 * weights,
        side_bytes=16 * trained,
        hidden_bytes=2 * d,
        state_bytes=4 * side,
        tap_bytes=2 * d,
        kept_bytes=4 * (d + 20 * side + 4 * inner // 8),
        gradient_bytes=4 * trained,
    )
    return Profile({BLOCKS: (layer,) * 16}, {BLOCKS: 2 * d * 128_256})


def gain() -> None:
    models: dict[str, Callable[[], Profile]] = {
        "T5-Base": lambda: profile("t5-base", "pac"),
        "BART-Large": lambda: profile("bart-large", "pac"),
        "T5-Large": lambda: profile("t5-large", "pac"),
        "Llama-like 1B": llama_1b,
    }
    ratios: list[float] = []
    print("cluster | model | pac, epoch 1 | pac-hetero, epoch 1 | times as fast | 3 epochs | planned in")
    for name, (cards, link, shared) in CLUSTERS.items():
        cluster = Cluster(
            tuple(card(kind).device(f"{kind}-{i}") for i, kind in enumerate(cards)), default=link, shared=shared
        )
        for model, make in models.items():
            ratios += _compared(name, model, make(), cluster)
    print(f"mean {statistics.mean(ratios):.2f}, median {statistics.median(ratios):.2f} of {len(ratios)} that both plan")


def _compared(name: str, title: str, model: Profile, cluster: Cluster) -> list[float]:
    """Print a row; the ratio, if there is one."""
    work = job(BATCH, None)
    theirs = made("pac", model, cluster, work)
    begin = time.process_time()
    ours = made("pac-hetero", model, cluster, work)
    taken = time.process_time() - begin

    def epochs(found: Plan | None, count: int) -> float | None:
        return None if found is None else simulate(found, model, cluster, work, Work(SAMPLES, count)).seconds

    one, best = epochs(theirs, 1), epochs(ours, 1)
    whole, best_whole = epochs(theirs, EPOCHS), epochs(ours, EPOCHS)
    ratio = f"{one / best:.2f}" if one and best else "does not fit" if best is None else "pac does not fit"
    run = f"{whole / best_whole:.2f}" if whole and best_whole else ""
    print(f"{name} | {title} | {_s(one)} | {_s(best)} | {ratio} | {run} | {taken:.1f} s", flush=True)
    return [one / best] if one and best else []


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def growth() -> None:
    block = profile("t5-large", "pac")
    model = replace(block, layers={BLOCKS: (block.layers[BLOCKS] * 4)[:96]})
    kinds = ("jetson-nano", "jetson-tx2", "xavier-nx", "raspberry-pi-5", "laptop", "orin-nano")
    print(f"96 layers, batches of 64 samples of {TOKENS} tokens, 100 Mbit/s")
    for count in (2, 4, 6, 8, 16, 32, 64, 128, 256, 512, 1000):
        devices = tuple(card(kinds[(i * i + i // 3) % 6]).device(f"d{i}") for i in range(count))
        cluster, work = Cluster(devices, default=Link(1e8, 1e-3)), job(64, None)
        begin = time.process_time()
        found = made("pac-hetero", model, cluster, work)
        taken = time.process_time() - begin
        step = seconds(found, model, cluster, work)
        text = (
            "nothing fits"
            if found is None
            else f"{len(found.stages)} stages, {found.size} devices, {step:.2f} s a step"
        )
        print(f"{count:>5} devices: planned in {taken:6.2f} s; {text}", flush=True)


if __name__ == "__main__":
    main()
