"""Spreading entries before the first cached epoch, or while it trains, over links of a given rate.

    python benchmarks/spread.py [--mbit 128 1000] [--samples 3000] [--tokens 12 60] [--json]

Two devices, each a process in a network namespace of its own, over zmq as it is used; the link between them is shaped
with tc's token bucket. Each has the taps of half of the layers of a model of MiniLM's shape, and is to own half of the
samples. Needs root.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from pac_core.batches import epoch_batches, share_out
from pac_core.cache import ActivationCache
from pac_core.config import RunConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.contracts.transport import Peer, TransportOptions
from pac_core.examples import Example, Segment
from pac_core.keys import KeyFolder
from pac_core.model import get_pac_model
from pac_core.runtime.checkpoint import Progress
from pac_core.runtime.interrupt import StopFlag
from pac_core.runtime.optimizer import make_optimizer
from pac_core.runtime.spread import Holding, spread_entries
from pac_core.runtime.spreading import Spreading
from pac_core.runtime.stage import bind_share, stage_taps
from pac_core.runtime.team import Replicas
from pac_core.runtime.train import Trainer, train_epoch
from pac_plugins.transports import make_zmq, new_keys

SPACES = ("pac-bench-0", "pac-bench-1")
PLAN = Plan((StagePlan({ENCODER: (0, 3)}, ("a",), (1,)), StagePlan({ENCODER: (3, 6)}, ("b",), (1,))), 1)
WAYS = ("before", "meanwhile")
CLASSES = 150

_spawn = multiprocessing.get_context("spawn")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def connect_spaces(mbit: int) -> None:
    """Two namespaces with a link of ``mbit`` Mbit/s in each direction."""
    for space in SPACES:
        run("ip", "netns", "add", space)
    run("ip", "link", "add", "pacb0", "netns", SPACES[0], "type", "veth", "peer", "name", "pacb1", "netns", SPACES[1])
    for i, space in enumerate(SPACES):
        run("ip", "-n", space, "addr", "add", f"10.97.0.{i + 1}/24", "dev", f"pacb{i}")
        run("ip", "-n", space, "link", "set", f"pacb{i}", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
        run("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", f"pacb{i}", *shape)


def remove_spaces() -> None:
    for space in SPACES:
        subprocess.run(["ip", "netns", "del", space], capture_output=True)


def texts(samples: int, tokens: int) -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(samples):
        ids = rng.integers(4, 30000, rng.integers(tokens // 2, tokens + tokens // 2 + 1)).astype(np.int32)
        found.append(Example((Segment(ENCODER, ids, np.zeros(len(ids), np.int8)),), i % CLASSES))
    return found


def device(rank: int, way: str, folder: Path, keys: list[str], samples: int, tokens: int) -> float:
    """Seconds from filled shares to the end of the first cached epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=CLASSES
    )
    cache = ActivationCache.open("memory")
    model = get_pac_model(hf.BertForSequenceClassification(config).eval(), AdapterConfig(reduction=8), cache=cache)
    model.calibrated.fill_(True)
    assert model.reader.cache is not None
    layers = PLAN.stages[rank].layers
    share = bind_share(cache, model, layers)
    assert share is not None
    examples = texts(samples, tokens)
    taps = len(stage_taps(model.side, layers)[ENCODER])
    for example in examples:  # what is in an entry takes no less time than any other
        share.put(share.keys(example.segments), [torch.randn(taps, len(example), 384)])
    holding = Holding(share, model.reader.cache, [stage_taps(model.side, stage.layers) for stage in PLAN.stages])
    model.release_backbone()
    peers = [Peer(f"tcp://10.97.0.{i + 1}:5599", key) for i, key in enumerate(keys)]
    with make_zmq(TransportOptions(rank, peers, keys=folder / str(rank), timeout=120.0)) as transport:
        transport.barrier()
        began = time.perf_counter()
        epoch(model, examples, transport, holding, way)
        transport.barrier()
        return time.perf_counter() - began


def epoch(model: Any, examples: list[Example], transport: Any, holding: Holding, way: str) -> None:
    config = RunConfig.build({"model": "-", "train": "-"})
    data = share_out(examples, config.batch_size, 0, [1.0, 1.0])
    order = [i for batch in epoch_batches(data, config.seed, 1) for i in batch]

    def spread(arrived: Any) -> list[int]:
        return spread_entries(
            transport,
            PLAN,
            holding,
            [examples[i] for i in order],
            [int(data.owners[i]) for i in order],
            on_stored=lambda chosen: arrived([order[i] for i in chosen]),
        )

    trainer = Trainer(
        config=config,
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
        data=data,
        steps_per_epoch=len(epoch_batches(data, config.seed, 1)),
        checkpoint=Path("/nowhere"),
        identity={},
        stop=StopFlag(),
        on_step=lambda progress, done, loss: None,
        team=Replicas(transport),
    )
    spreading = Spreading(spread)
    if way == "before":
        spreading.finish()
    train_epoch(replace(trainer, ready=spreading.wait), Progress())
    assert spreading.finish() == []


def in_space(rank: int, results: Any, work: Any) -> None:
    """Run ``work`` in this process, moved into its namespace."""
    import ctypes
    import os

    space = os.open(f"/run/netns/{SPACES[rank]}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(space, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    results.put(work(rank))


def measure(way: str, mbit: int, samples: int, tokens: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = [KeyFolder(folder / str(rank)) for rank in range(2)]
        keys = [made.make(f"device{rank}", new_keys) for rank, made in enumerate(folders)]
        for made in folders:
            for rank, key in enumerate(keys):
                made.allow(key, f"device{rank}", "home")
        connect_spaces(mbit)
        try:
            results = _spawn.Queue()
            work = partial(device, way=way, folder=folder, keys=keys, samples=samples, tokens=tokens)
            processes = [_spawn.Process(target=in_space, args=(rank, results, work)) for rank in range(2)]
            for process in processes:
                process.start()
            seconds = [results.get(timeout=300) for _ in processes]
            for process in processes:
                process.join()
            return max(seconds)
        finally:
            remove_spaces()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=int, nargs="+", default=[128, 1000])
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12, 60])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for mbit in given.mbit:
        for tokens in given.tokens:
            seconds = {way: [] for way in WAYS}
            for _ in range(given.repeat):
                for way in WAYS:
                    seconds[way].append(measure(way, mbit, given.samples, tokens))
            rows.append({"mbit": mbit, "tokens": tokens, **{way: min(found) for way, found in seconds.items()}})
            if not given.json:
                print(rows[-1], flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
