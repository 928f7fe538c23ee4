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
from pac_core.testing.hosts import Host, network
from pac_plugins.transports import make_zmq, new_keys

PLAN = Plan((StagePlan({ENCODER: (0, 3)}, ("a",), (1,)), StagePlan({ENCODER: (3, 6)}, ("b",), (1,))), 1)
WAYS = ("before", "meanwhile")
CLASSES = 150

_spawn = multiprocessing.get_context("spawn")


def texts(samples: int, tokens: int) -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(samples):
        ids = rng.integers(4, 30000, rng.integers(tokens // 2, tokens + tokens // 2 + 1)).astype(np.int32)
        found.append(Example((Segment(ENCODER, ids, np.zeros(len(ids), np.int8)),), i % CLASSES))
    return found


def device(rank: int, way: str, folder: Path, peers: list[Peer], samples: int, tokens: int) -> float:
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
        team=Replicas(transport, [1.0, 1.0]),
    )
    spreading = Spreading(spread)
    if way == "before":
        spreading.finish()
    train_epoch(replace(trainer, ready=spreading.wait), Progress())
    assert spreading.finish() == []


def on_host(host: Host, rank: int, results: Any, work: Any) -> None:
    """Run ``work`` in this process, which uses the network of ``host`` from now on."""
    host.enter()
    results.put(work(rank))


def measure(way: str, mbit: int, samples: int, tokens: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = [KeyFolder(folder / str(rank)) for rank in range(2)]
        keys = [made.make(f"device{rank}", new_keys) for rank, made in enumerate(folders)]
        for made in folders:
            for rank, key in enumerate(keys):
                made.allow(key, f"device{rank}", "home")
        with network(2) as made:
            made.shape(mbit)
            results = _spawn.Queue()
            peers = [Peer(f"tcp://{host.address}:5599", key) for host, key in zip(made.hosts, keys)]
            work = partial(device, way=way, folder=folder, peers=peers, samples=samples, tokens=tokens)
            processes = [
                _spawn.Process(target=on_host, args=(host, rank, results, work)) for rank, host in enumerate(made.hosts)
            ]
            for process in processes:
                process.start()
            seconds = [results.get(timeout=300) for _ in processes]
            for process in processes:
                process.join()
            return max(seconds)


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
