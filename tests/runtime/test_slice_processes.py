"""Slices of a large model in processes of their own: memory, and what a kill leaves."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.transport import Peer, Transport, TransportOptions
from pac_core.errors import PeerLost
from pac_core.registry import Registry
from pac_core.runtime import slice_leader
from pac_core.runtime.slices import Recipient, open_slices, serve_slices
from pac_core.testing.threads import in_threads
from pac_core.testing.tiny import tiny_model
from pac_core.weights import describe, slice_bytes
from pac_plugins.backbones.tensor_file import TensorFile
from pac_plugins.transports import make_local

DEVICE = Path(__file__).with_name("slice_device.py")
LAYERS = {ENCODER: (2, 5)}
SMALL = 32 << 20
"""Bytes that a device may take beside its slice: pieces under way, sockets, what threads set up."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 211 MB with 7 layers and random weights."""
    folder = tmp_path_factory.mktemp("large")
    hf.BertModel(hf.BertConfig(vocab_size=3000, num_hidden_layers=7)).save_pretrained(folder)
    return folder


@pytest.fixture
def start(tmp_path: Path, large: Path) -> Start:
    """Starts the process of a device, which takes part in sharing out the model once for each root and dtype."""
    tiny_model("bert").save_pretrained(tmp_path / "tiny")

    def started(rank: int, size: int, *rounds: tuple[Path | str, str]) -> subprocess.Popen[str]:
        told = [{"model": str(large), "layers": LAYERS, "dtype": dtype, "root": str(root)} for root, dtype in rounds]
        peers = [str(tmp_path / str(r)) for r in range(size)]
        given = {"rank": rank, "peers": peers, "warm_up": str(tmp_path / "tiny"), "rounds": told}
        return subprocess.Popen([sys.executable, str(DEVICE), json.dumps(given)], stdout=subprocess.PIPE, text=True)

    return started


def said(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What a device says of each round."""
    found: list[dict[str, Any]] = json.loads(process.communicate(timeout=200)[0])
    return found


def test_workers_take_their_slice_and_the_leader_next_to_nothing(start: Start, large: Path, tmp_path: Path) -> None:
    """Streamed in two number formats, from the copy that was kept, and from the leader's path."""
    rounds = [(tmp_path / "a", "bfloat16"), (tmp_path / "b", "float32"), (tmp_path / "b", "float32"), ("", "float32")]
    processes = [start(rank, 3, *rounds) for rank in range(3)]
    by_round = list(zip(*map(said, processes)))
    size = sum(w.size for w in describe(large, None, Registry()).weights(LAYERS))
    assert [leader["sent"] for leader, *_ in by_round] == [2 * size, 2 * size, 0, 0]
    for (_, dtype), (leader, *workers) in zip(rounds, by_round):
        assert {worker["fingerprint"] for worker in workers} == {leader["fingerprint"]}
        assert leader["grown"] < SMALL
        weights = slice_bytes(describe(large, getattr(torch, dtype), Registry()), LAYERS)
        for worker in workers:
            assert 0.9 * weights < worker["grown"] < 1.15 * weights + SMALL


def test_a_kill_leaves_whole_files_with_which_the_next_worker_goes_on(
    start: Start, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    backbone = describe(large, torch.float32, Registry(), digests=True)
    peers = [Peer(str(tmp_path / str(rank))) for rank in range(2)]
    paused, go_on = threading.Event(), threading.Event()
    payload, files = slice_leader.payload, iter(range(99))

    def pausing(weights: Any) -> Iterator[torch.Tensor]:
        second = next(files) == 1
        for number, piece in enumerate(payload(weights)):
            if second and number == 10:
                paused.set()
                go_on.wait(60)
            yield piece

    monkeypatch.setattr(slice_leader, "payload", pausing)
    worker = start(1, 2, (kept, "float32"))
    killer = threading.Thread(target=lambda: (paused.wait(60), worker.kill(), worker.wait(), go_on.set()))
    killer.start()
    with make_local(TransportOptions(0, peers)) as transport, pytest.raises(PeerLost):
        serve_slices(transport, large, backbone, {1: Recipient("d1", [LAYERS])})
    killer.join()
    (folder,) = kept.glob("1/models/*/*")
    assert [file.name for file in folder.glob("encoder-*.safetensors")] == ["encoder-0002.safetensors"]
    assert len(list(folder.glob(".encoder-0003*"))) == 1
    for file in folder.glob("*.safetensors"):
        TensorFile(file)
    monkeypatch.undo()
    monkeypatch.setattr("pac_core.runtime.slices.local_folder", lambda path: None)
    recipients = {1: Recipient("d1", [LAYERS])}

    def device(transport: Transport) -> Any:
        if transport.rank == 0:
            return serve_slices(transport, large, backbone, recipients)
        return open_slices(transport, 0, kept / "1", Registry())(LAYERS).info

    sent, info = in_threads(2, device)
    assert info == backbone.info
    assert sent == {1: sum(w.size for w in backbone.weights() if w.layer in [(ENCODER, 3), (ENCODER, 4)])}
