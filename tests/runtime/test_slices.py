"""Workers come to their slices of the backbone: from their own disk or from the leader, and only if they fit."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.contracts.formats import WeightFormat
from pac_core.contracts.message import Message
from pac_core.contracts.transport import Transport
from pac_core.errors import BadInput, PacError, Refused, RunFailed, TransportError
from pac_core.registry import Registry
from pac_core.runtime import slice_files
from pac_core.runtime.slice_leader import make_offer
from pac_core.runtime.slices import Recipient, Room, open_slices, serve_slices
from pac_core.testing.backbone_parts import change
from pac_core.testing.backbone_reference import backbone_taps, differing_taps, make_batch, split, whole
from pac_core.testing.threads import Exchange, in_threads
from pac_core.testing.tiny import tiny_model
from pac_core.weights import describe

FAMILIES = ("bert", "gpt2", "llama", "t5", "bart")
WIDE = Room(None, None)

Layers = Mapping[str, tuple[int, int]] | None


@pytest.fixture(scope="module")
def leaders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the checkpoint of a tiny model at the leader, by family and options of save_pretrained."""
    made: dict[str, Path] = {}

    def of(family: str, **options: Any) -> Path:
        key = f"{family} {options}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("leader")
            tiny_model(family).save_pretrained(made[key], **options)
        return made[key]

    return of


class Run:
    """A leader and workers as threads, the workers with folders of their own.

    Attributes:
        sent: bytes of weights that the leader says it sent, by rank.
    """

    def __init__(
        self, model: str | Path, root: Path, dtype: torch.dtype | None = None, weights: WeightFormat = "native"
    ) -> None:
        self.model, self.root, self.dtype, self.weights = model, root, dtype, weights
        self.registry = Registry()
        self.exchange = Exchange()
        self.sent: dict[int, int] = {}
        self.rooms: dict[int, Room] = {}

    def describe(self) -> Backbone:
        return describe(self.model, self.dtype, self.registry, digests=True, weights=self.weights)

    def __call__(self, *slices: Layers) -> list[Backbone]:
        """The slices of the workers, which all succeed."""
        found = self.outcomes(*slices)
        for outcome in found:
            if isinstance(outcome, PacError):
                raise outcome
        return found[1:]

    def outcomes(self, *slices: Layers) -> list[Any]:
        """What each device, the leader first, returns or raises."""

        def device(transport: Transport) -> Any:
            try:
                return self._lead(transport, slices) if transport.rank == 0 else self._open(transport, slices)
            except PacError as error:
                return error

        return in_threads(len(slices) + 1, device, self.exchange)

    def _lead(self, transport: Transport, slices: Sequence[Layers]) -> None:
        backbone = self.describe()
        recipients = {rank: Recipient(f"d{rank}", [layers]) for rank, layers in enumerate(slices, start=1)}
        self.sent = serve_slices(transport, self.model, backbone, recipients)

    def _open(self, transport: Transport, slices: Sequence[Layers]) -> Backbone:
        room = self.rooms.get(transport.rank, WIDE)
        return open_slices(transport, 0, self.root / str(transport.rank), self.registry, room=room)(
            slices[transport.rank - 1]
        )

    def traffic(self, rank: int) -> int:
        """Bytes of all messages from the leader to a worker."""
        return sum(_size(message) for source, to, message in self.exchange.sent if (source, to) == (0, rank))


def _size(message: Message) -> int:
    return message.nbytes() + len(str(message.header)) + sum(map(len, message.tensors)) + 64


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not see the leader's disk."""
    monkeypatch.setattr("pac_core.runtime.slices.local_folder", lambda path: None)


def taps_are_equal(slices: Sequence[Backbone], ranges: Sequence[Any], model: Path, dtype: torch.dtype | None) -> bool:
    source = BackboneSource(model, dtype=dtype, weights=slices[0].info.weights)
    expected = load_backbone(source, Registry())
    batch = make_batch(expected, [5, 11, 8], [4, 9, 6], "right", 0)
    reference = backbone_taps([expected], [whole(expected)], batch)
    last = ranges[-1]
    if list(last) == [s.name for s in expected.info.streams] and model_has_head(expected):
        hidden = reference[expected.info.streams[-1].name][-1]
        assert torch.equal(slices[-1].head(hidden), expected.head(hidden))
    return differing_taps(backbone_taps(slices, ranges, batch), reference, batch) == []


def model_has_head(backbone: Backbone) -> bool:
    return backbone.info.model_type != "bert"


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_slices_give_the_bits_of_the_whole_model(
    family: str, options: Any, dtype: Any, leaders: Callable[..., Path], tmp_path: Path
) -> None:
    model = leaders(family, **options)
    assert (len(list(model.glob("*.safetensors"))) > 1) == bool(options)
    run = Run(model, tmp_path, dtype)
    ranges = split(run.describe(), [0.4, 0.7])
    slices = run(*ranges)
    assert {part.info.fingerprint for part in slices} == {run.describe().info.fingerprint}
    assert taps_are_equal(slices, ranges, model, dtype)
    assert run.exchange.waiting() == []


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("family", FAMILIES)
def test_slices_are_quantised_where_they_arrive(family: str, leaders: Callable[..., Path], tmp_path: Path) -> None:
    model = leaders(family)
    native, run = Run(model, tmp_path / "native"), Run(model, tmp_path, None, "int8")
    ranges = split(run.describe(), [0.4, 0.7])
    native(*ranges)
    slices = run(*ranges)
    assert {(part.info.fingerprint, part.info.weights) for part in slices} == {
        (run.describe().info.fingerprint, "int8")
    }
    assert taps_are_equal(slices, ranges, model, None)
    assert run.sent == native.sent
    run.rooms[2] = Room(sum(w.nbytes for w in run.describe().weights(ranges[1])) - 1, None)
    told = str(run.outcomes(*ranges)[0])
    assert "bytes of memory are needed for weights in int8 and float32" in told


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_streamed_is_kept_and_whole_and_is_a_checkpoint(
    family: str, leaders: Callable[..., Path], tmp_path: Path
) -> None:
    run = Run(leaders(family), tmp_path)
    ranges = split(run.describe(), [0.5])
    for held in ranges:
        assert run(held)[0].info == run.describe().info
    run = Run(leaders(family), tmp_path)
    run(None)
    assert run.sent == {1: 0}
    (folder,) = tmp_path.glob("1/models/*/*")
    assert folder.parent.name == run.describe().info.fingerprint
    assert load_backbone(BackboneSource(folder), Registry()).info == run.describe().info
    batch = make_batch(tiny_model(family), [5, 7], [3, 4], "right", 1)
    own, expected = (hf.AutoModel.from_pretrained(path).eval() for path in (folder, leaders(family)))
    extra = {} if batch.decoder_ids is None else {"decoder_input_ids": batch.decoder_ids}
    assert torch.equal(own(batch.ids, **extra)[0], expected(batch.ids, **extra)[0])


def larger(folder: Path, **fields: Any) -> Path:
    config = hf.BertConfig(
        **{"vocab_size": 3000, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, **fields}
    )
    hf.BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("away")
def test_only_the_slice_is_sent(tmp_path: Path) -> None:
    run = Run(larger(tmp_path / "leader", intermediate_size=1024), tmp_path)
    ranges = split(run.describe(), [0.4, 0.7])
    run(*ranges)
    weights = [sum(w.size for w in run.describe().weights(held)) for held in ranges]
    assert min(weights) > 5 << 20
    for rank, size in enumerate(weights, start=1):
        assert run.sent[rank] == size
        assert size < run.traffic(rank) <= 1.01 * size


@pytest.mark.usefixtures("away")
def test_pieces_are_small_and_few_are_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_files, "PIECE", 1000)
    model = tmp_path / "leader"
    tiny_model("llama").save_pretrained(model)
    run = Run(model, tmp_path)
    (part,) = run({DECODER: (1, 3)})
    data = [m.nbytes() for _, _, m in run.exchange.sent if m.tag.direction == "slice.data"]
    assert max(data) == 1000
    assert sum(data) == sum(w.size for w in part.weights({DECODER: (1, 3)}))


def test_a_copy_on_the_workers_own_disk_is_taken(leaders: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(leaders("llama"), tmp_path)
    ranges = split(run.describe(), [0.5])
    slices = run(*ranges)
    assert run.sent == {1: 0, 2: 0}
    assert {part.info.fingerprint for part in slices} == {run.describe().info.fingerprint}
    assert not list(tmp_path.iterdir())
    assert run.traffic(1) < 20_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: change(f / "model.safetensors", "model.layers.1.mlp.up_proj.weight", 1e-3),
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("1e-06", "1e-05")),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "model.safetensors").write_bytes(b"\x10"),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: shutil.rmtree(f),
        lambda f: tiny_model("bert").save_pretrained(f),
    ],
    ids=["weight", "setting", "no JSON", "no safetensors", "no weights", "no folder", "another family"],
)
def test_a_copy_that_is_not_the_leaders_is_noticed(
    damage: Any, leaders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(leaders("llama"), tmp_path / "copy")
    damage(copy)
    monkeypatch.setattr("pac_core.runtime.slices.local_folder", lambda path: copy)
    run = Run(leaders("llama"), tmp_path)
    (part,) = run({DECODER: (1, 2)})
    assert run.sent[1] == sum(w.size for w in run.describe().weights({DECODER: (1, 2)}))
    assert torch.equal(
        part.layer_weights(DECODER, 1).up,
        load_file(leaders("llama") / "model.safetensors")["model.layers.1.mlp.up_proj.weight"],
    )


def test_a_copy_with_another_head_is_noticed_where_the_head_is_held(
    leaders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprints do not cover heads, so a copy with another one is the same backbone."""
    copy = shutil.copytree(leaders("llama"), tmp_path / "copy")
    change(copy / "model.safetensors", "lm_head.weight", 1.0)
    monkeypatch.setattr("pac_core.runtime.slices.local_folder", lambda path: copy)
    run = Run(leaders("llama"), tmp_path)
    ranges = split(run.describe(), [0.5])
    slices = run(*ranges)
    assert run.sent[1] == 0 < run.sent[2]
    assert taps_are_equal(slices, ranges, leaders("llama"), None)


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize(
    ("family", "layers"),
    [("bert", {ENCODER: (1, 2)}), ("gpt2", {DECODER: (3, 3)}), ("llama", {DECODER: (2, 3)}), ("t5", {DECODER: (3, 3)})],
)
def test_what_was_damaged_on_the_way_is_refused(
    family: str, layers: Layers, leaders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last slices of GPT-2 and T5 hold the tied embeddings as their head."""
    run = Run(leaders(family), tmp_path)
    exchange_send = run.exchange.send

    def damage(message: Message) -> Message:
        if message.tag.direction == "slice.data":
            message.tensors["piece"][-1] ^= 1
        return message

    monkeypatch.setattr(run.exchange, "send", lambda line, m, work: exchange_send(line, damage(m), work))
    leader, worker = run.outcomes(layers)
    assert isinstance(worker, RunFailed)
    assert "is not what the leader has" in str(worker)
    assert isinstance(leader, RunFailed)
    assert str(leader) == f"device d1: {worker}"
    monkeypatch.undo()
    again = Run(leaders(family), tmp_path)
    monkeypatch.setattr("pac_core.runtime.slices.local_folder", lambda path: None)
    (part,) = again(layers)
    assert part.info == run.describe().info


@pytest.mark.usefixtures("away")
def test_a_kept_file_that_rotted_is_sent_again(leaders: Callable[..., Path], tmp_path: Path) -> None:
    layers = {DECODER: (1, 3)}
    Run(leaders("gpt2"), tmp_path)(layers)
    (folder,) = tmp_path.glob("1/models/*/*")
    files = sorted(folder.glob("decoder-*.safetensors"))
    assert [file.name for file in files] == ["decoder-0001.safetensors", "decoder-0002.safetensors"]
    data = bytearray(files[1].read_bytes())
    data[-3] ^= 1
    files[1].write_bytes(data)
    run = Run(leaders("gpt2"), tmp_path)
    (part,) = run(layers)
    assert run.sent[1] == sum(w.size for w in run.describe().weights() if w.layer == (DECODER, 2))
    assert part.info == run.describe().info


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_device_too_small_is_refused_before_anything_is_sent(
    kind: str, leaders: Callable[..., Path], tmp_path: Path
) -> None:
    run = Run(leaders("bert"), tmp_path)
    first, second = split(run.describe(), [0.5])
    weights = run.describe().weights(second)
    needed = sum(w.nbytes for w in weights)
    run.rooms[2] = Room(needed - 1, None) if kind == "memory" else Room(needed, needed)  # on disk there are headers too
    leader, one, two = run.outcomes(first, second)
    assert isinstance(two, BadInput)
    assert isinstance(leader, Refused)
    assert isinstance(one, Refused)
    assert str(leader) == str(one) == str(two)
    assert "device d2 is too small for its slice, encoder [2, 3): " in str(two)
    assert f"{run.rooms[2].memory if kind == 'memory' else needed:,} are free; " in str(two)
    assert f" bytes of {kind} are needed for weights in float32" in str(two)
    assert (f": {needed:,} bytes" in str(two)) == (kind == "memory")
    assert "\n" not in str(two)
    assert not [m for _, _, m in run.exchange.sent if m.tag.direction == "slice.data"]
    assert not list(tmp_path.glob("*/models/*/*/*.safetensors"))
    run = Run(leaders("bert"), tmp_path)
    run.rooms[2] = Room(needed, needed + 100_000)
    assert len(run(first, second)) == 2


def test_a_worker_that_cannot_write_ends_all(leaders: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pac_core.runtime.slices.local_folder", lambda path: None)
    monkeypatch.setattr(slice_files, "PIECE", 500)

    def full(file: Any, data: Any) -> None:
        if file.tell() > 3000:
            raise OSError(28, "No space left on device")
        file.write(data)

    monkeypatch.setattr(slice_files, "_write_all", full)
    leader, worker = Run(leaders("bert"), tmp_path).outcomes(None)
    assert isinstance(worker, RunFailed)
    assert not isinstance(worker, TransportError)
    assert "No space left on device" in str(worker)
    assert str(leader) == f"device d1: {worker}"
    assert not [f for f in tmp_path.glob("1/models/*/*/*") if f.name not in ("config.json", slice_files.INDEX)]


def test_a_model_in_memory_is_refused(tmp_path: Path) -> None:
    live = load_backbone(BackboneSource(model=tiny_model("bert")), Registry())
    with pytest.raises(BadInput, match="save_pretrained"):
        in_threads(2, lambda t: serve_slices(t, "live", live, {1: Recipient("d1", [None])}) if t.rank == 0 else None)


def test_a_leader_without_all_files_says_so(leaders: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(leaders("gpt2", max_shard_size="20KB"), tmp_path / "model")
    lost = sorted(folder.glob("*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(BadInput, match=f"{lost.name} is missing"):
        describe(folder, None, Registry(), digests=True)
    partial = load_backbone(BackboneSource(leaders("gpt2"), layers={}, digests={}), Registry())
    with pytest.raises(BadInput, match="not all on this device"):
        make_offer(leaders("gpt2"), partial, Recipient("d1", [{DECODER: (1, 2)}]))


@pytest.mark.usefixtures("away")
def test_a_worker_that_would_compute_otherwise_is_refused(
    leaders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of transformers may choose another attention; here the leader's description says so."""
    run = Run(leaders("bert"), tmp_path)
    real = run.describe()

    def elsewhere() -> Backbone:
        real.info.__dict__["fingerprint"] = "0123456789abcdef0123456789abcdef"
        return real

    monkeypatch.setattr(run, "describe", elsewhere)
    leader, worker = run.outcomes({ENCODER: (0, 1)})
    assert isinstance(worker, BadInput)
    assert "install the same versions" in str(worker)
    assert str(leader) == str(worker)
    assert not [m for _, _, m in run.exchange.sent if m.tag.direction == "slice.data"]


@pytest.mark.usefixtures("away")
def test_where_a_slice_comes_from_is_logged(
    leaders: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pac")
    for _ in range(2):
        Run(leaders("bert"), tmp_path)({ENCODER: (1, 2)})
    received, kept = (r.getMessage() for r in caplog.records if "encoder [1, 2)" in r.getMessage())
    assert received == f"d1: encoder [1, 2) of {leaders('bert')} received"
    assert kept.startswith(f"d1: encoder [1, 2) comes from {tmp_path}")
