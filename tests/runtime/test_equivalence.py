"""Both phases of training over real transports and stores, each device a process: as on a single device."""

import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from pac_core.cache import ActivationCache
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.keys import KeyFolder
from pac_core.testing.stages import KINDS, Outcome, assert_same, cases, on_a_device, on_one_device
from pac_core.testing.transport_crew import run_crew
from pac_plugins.transports import make_local, make_torch, make_zmq, new_keys

PLANS = int(os.environ.get("PAC_RANDOM_PLANS", "2"))  # the first that is drawn is the simplest
STORES = ["memory", "disk", "lz4+disk"]

# each kind over some pair of transport and store, and each pair at least once
PAIRS = itertools.cycle(itertools.product(["local", "zmq", "torch"], STORES))
TRIPLES = [(*pair, kind) for kind, pair in zip(KINDS, PAIRS)]


@pytest.mark.parametrize(("transport", "store", "kind"), TRIPLES)
@given(data=st.data())
@settings(max_examples=PLANS, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
def test_epochs_by_stages_and_from_the_cache_are_those_of_a_single_device(
    transport: str, store: str, kind: str, data: Any
) -> None:
    for package in ("zmq", "lz4"):
        if package in (transport, store.partition("+")[0]):
            pytest.importorskip(package)
    case = data.draw(cases(kind, stages=3, group=2, micro_batches=4).filter(lambda case: case.plan.size > 1))

    def device(connected: Transport) -> bytes:
        def open_cache(name: str) -> ActivationCache:
            return ActivationCache.open(store, path / f"{connected.rank} {name}", dtype="float64")

        outcome = on_a_device(case, connected, open_cache)
        connected.barrier()
        return packed(outcome)

    with TemporaryDirectory() as folder:
        path = Path(folder)
        make, options = CONNECT[transport](path, case.plan.size)
        found: list[Outcome] = [unpacked(outcome) for outcome in run_crew(make, options, device)]
    assert_same(case, found, on_one_device(case, cached=True))


def packed(outcome: Outcome) -> bytes:
    """As bytes: pipes would send tensors as shared memory, which ends with its process."""
    tensors = {f"gradients.{i}.{name}": t for i, step in enumerate(outcome.gradients) for name, t in step.items()}
    tensors |= {f"weights..{name}": t for name, t in outcome.weights.items()}
    losses = torch.tensor(outcome.losses, dtype=torch.float64)
    return save(
        {
            "losses..": losses,
            "steps..": torch.tensor(len(outcome.gradients)),
            **{name: t.detach().clone().contiguous() for name, t in tensors.items()},
        }
    )


def unpacked(data: bytes) -> Outcome:
    """What `packed` was given."""
    tensors = {tuple(name.split(".", 2)): tensor for name, tensor in load(data).items()}
    gradients: list[dict[str, torch.Tensor]] = [{} for _ in range(int(tensors["steps", "", ""]))]
    for (kind, step, name), tensor in tensors.items():
        if kind == "gradients":
            gradients[int(step)][name] = tensor
    weights = {name: t for (kind, _, name), t in tensors.items() if kind == "weights"}
    return Outcome(tensors["losses", "", ""].tolist(), gradients, weights)


Connect = Callable[[Path, int], tuple[Callable[[TransportOptions], Transport], list[TransportOptions]]]


def local(path: Path, size: int) -> tuple[Callable[[TransportOptions], Transport], list[TransportOptions]]:
    peers = [Peer(str(path / f"socket {rank}")) for rank in range(size)]
    return make_local, [TransportOptions(rank=rank, peers=peers) for rank in range(size)]


def zmq(path: Path, size: int) -> tuple[Callable[[TransportOptions], Transport], list[TransportOptions]]:
    folders = [KeyFolder(path / f"keys {rank}") for rank in range(size)]
    keys = [folder.make(f"device{rank}", new_keys) for rank, folder in enumerate(folders)]
    for folder, (rank, key) in itertools.product(folders, enumerate(keys)):
        folder.allow(key, f"device{rank}", "home")
    peers = [Peer(f"tcp://127.0.0.1:{port}", key) for port, key in zip(free_ports(size), keys)]
    return make_zmq, [TransportOptions(rank=r, peers=peers, keys=folders[r].path) for r in range(size)]


def torchrun(path: Path, size: int) -> tuple[Callable[[TransportOptions], Transport], list[TransportOptions]]:
    """With the variables that torchrun sets."""
    (port,) = free_ports(1)

    def make(options: TransportOptions) -> Transport:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(place, RANK=str(options.rank), WORLD_SIZE=str(size))
        return make_torch(options)

    return make, [TransportOptions(rank=rank) for rank in range(size)]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


CONNECT: dict[str, Connect] = {"local": local, "zmq": zmq, "torch": torchrun}
