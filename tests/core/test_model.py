"""PacModel in a plain loop: serving from the cache, releasing the backbone, saving and loading."""

import copy
import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pac_core.cache import ActivationCache
from pac_core.contracts.adapter import BottleneckAdapterConfig, ParallelAdapterConfig
from pac_core.errors import BadInput, RunFailed
from pac_core.examples import Task
from pac_core.model import PacModel, get_pac_model
from pac_core.testing.tiny import save_tiny, tiny_model

CONFIG = ParallelAdapterConfig(reduction=4, dropout=0.0)
FAMILIES = ["bert", "gpt2", "llama", "t5", "bart"]
GENERATING = FAMILIES[1:]


def batches(family: str, left: bool = False, seed: int = 3) -> list[dict[str, Tensor]]:
    """Two batches of rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for lengths in ([3, 7, 5], [4, 2, 6]):
        places, counts = torch.arange(max(lengths))[None], torch.tensor(lengths)[:, None]
        mask = places >= max(lengths) - counts if left else places < counts
        rows = [torch.randint(4, 64, (n,), generator=generator) for n in lengths]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.cat(rows)
        if family == "bert":
            labels = torch.randint(0, 3, (3,), generator=generator)
        elif family in ("t5", "bart"):
            labels = torch.randint(4, 64, (3, 4), generator=generator)
            labels[1, 2:] = -100
        else:
            labels = ids.masked_fill(~mask, -100)
        found.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})
    return found


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def memory() -> Iterator[ActivationCache]:
    with ActivationCache.open("memory", dtype="float32") as cache:
        yield cache


def train(model: PacModel, data: list[dict[str, Tensor]], epochs: int = 2) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model.train()
    losses = []
    for _ in range(epochs):
        for batch in data:
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_from_epoch_two_on_the_backbone_is_not_called(memory: Any, count_layers: Any, family: str) -> None:
    base = tiny_model(family)
    model = get_pac_model(base, CONFIG, cache=memory)
    calls = count_layers(base)
    data = batches(family)
    first = train(model, data, 1)
    assert calls["calls"] > 0
    calls.reset()
    later = train(model, data, 8)
    assert calls["calls"] == 0
    assert later[-1] < first[0]
    assert model.reader.counters.backbone_samples == 6
    assert model.reader.counters.cache_hits == 48


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_may_be_on_either_side(family: str) -> None:
    model = get_pac_model(tiny_model(family, dtype=torch.float64), CONFIG)
    train(model, batches(family), 2)
    model.eval()
    for right, left in zip(batches(family), batches(family, left=True), strict=True):
        one, two = model(**right), model(**left)
        torch.testing.assert_close(one.loss, two.loss, rtol=1e-9, atol=1e-9)
        if family in ("gpt2", "llama"):
            there, here = right["attention_mask"].bool(), left["attention_mask"].bool()
            torch.testing.assert_close(one.logits[there], two.logits[here], rtol=1e-9, atol=1e-9)
        else:
            torch.testing.assert_close(one.logits, two.logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", GENERATING)
def test_a_generative_model_starts_as_the_frozen_one(family: str) -> None:
    base = tiny_model(family, dtype=torch.float64)
    model = get_pac_model(base, CONFIG).eval()
    for batch in batches(family):
        expected = base(**batch)
        found = model(**batch)
        torch.testing.assert_close(found.loss, expected.loss.double(), rtol=1e-6, atol=1e-6)  # they sum in float32
        places = batch["labels"] != -100
        assert found.logits.shape == expected.logits.shape
        torch.testing.assert_close(found.logits[places], expected.logits[places], rtol=1e-9, atol=1e-9)


def test_logits_come_without_labels_and_not_in_training_steps() -> None:
    model = get_pac_model(tiny_model("t5"), CONFIG).train()
    batch = batches("t5")[0]
    assert model(**batch).logits is None
    fed = torch.tensor([[0, 5, 6]] * 3)
    free = model(batch["input_ids"], batch["attention_mask"], decoder_input_ids=fed)
    assert free.loss is None
    assert free.logits.shape == (3, 3, 64)


def test_only_side_network_and_head_train() -> None:
    base = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = get_pac_model(base, CONFIG)
    train(model, batches("bert"))
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in base.parameters())
    assert {name.split(".")[0] for name in model.state_dict()} == {"side", "head", "calibrated"}
    assert model.trainable() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert all(p.grad is not None for n, p in model.named_parameters() if "segments" not in n and "match" not in n)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_released_layers_leave_memory_and_cached_rows_still_train(memory: Any, family: str) -> None:
    base = tiny_model(family)
    model = get_pac_model(base, CONFIG, cache=memory)
    data = batches(family)
    train(model, data, 1)
    modules = [weakref.ref(m) for m in base.modules() if list(m.parameters(recurse=False))]
    head = base.get_output_embeddings() if family != "bert" else None
    layer = weakref.ref(next(m for m in base.modules() if isinstance(m, torch.nn.ModuleList))[0])
    model.release_backbone()
    del base
    gc.collect()
    assert layer() is None
    left = [m() for m in modules if m() is not None]
    assert all(m is head or m.weight is head.weight for m in left) if head is not None else left == []
    assert all(loss == loss for loss in train(model, data))
    with pytest.raises(RunFailed, match="1 samples are not in the cache"):
        model(**{name: tensor[:1] for name, tensor in batches(family, seed=9)[0].items()})


def test_a_reopened_backbone_serves_what_the_cache_lacks(memory: Any) -> None:
    model = get_pac_model(tiny_model("bert"), CONFIG, cache=memory).eval()
    batch = batches("bert")[0]
    expected = model(**batch).logits
    model.release_backbone()
    memory.store.delete_many(list(memory.store.keys())[:2])
    opened = get_pac_model(tiny_model("bert"), CONFIG).backbone
    model.reader.reopen = lambda: opened
    assert torch.allclose(model(**batch).logits, expected, atol=1e-6)
    assert model.backbone is opened
    assert model.reader.counters.backbone_samples == 5


def test_a_backbone_with_other_weights_is_not_taken(memory: Any) -> None:
    model = get_pac_model(tiny_model("bert"), CONFIG, cache=memory)
    model.release_backbone()
    model.reader.reopen = lambda: get_pac_model(tiny_model("bert", seed=1), CONFIG).backbone
    with pytest.raises(BadInput, match="weights have changed"):
        model(**batches("bert")[0])


@pytest.mark.parametrize("config", [CONFIG, BottleneckAdapterConfig(reduction=4, tap_every=2)], ids=lambda c: c.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_gives_equal_outputs(tmp_path: Path, family: str, config: Any) -> None:
    model = get_pac_model(tiny_model(family), config)
    data = batches(family)
    train(model, data)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    live = PacModel.from_pretrained(tiny_model(family), tmp_path / "adapter")
    save_tiny(tmp_path / "model", family)
    loaded = PacModel.from_pretrained(tmp_path / "model", tmp_path / "adapter")
    for batch in data:
        expected = model(**batch)
        for other in (live, loaded):
            found = other(**batch)
            assert torch.equal(found.loss, expected.loss)
            assert torch.equal(found.logits, expected.logits)
    assert live.task == model.task
    assert not live.training


def test_a_deep_copy_shares_backbone_and_cache_only(memory: Any) -> None:
    model = get_pac_model(tiny_model("bert"), CONFIG, cache=memory)
    data = batches("bert")
    copied = copy.deepcopy(model)
    assert copied.backbone is model.backbone
    before = model.eval()(**data[0]).logits
    train(copied, data)
    assert torch.equal(model(**data[0]).logits, before)
    assert not torch.equal(copied.eval()(**data[0]).logits, before)


def test_the_task_is_told_by_the_models_class() -> None:
    assert get_pac_model(tiny_model("bert"), CONFIG).task == Task("classification", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert get_pac_model(tiny_model("bert", labels=1), CONFIG).task == Task("regression")
    assert get_pac_model(tiny_model("gpt2"), CONFIG).task == Task("causal-lm")
    assert get_pac_model(tiny_model("bart"), CONFIG).task == Task("seq2seq")
    with pytest.raises(BadInput, match=r"BertModel does not say.*task=Task"):
        get_pac_model(tiny_model("bert").bert, CONFIG)
    with pytest.raises(BadInput, match="bert is an encoder"):
        get_pac_model(tiny_model("bert").bert, CONFIG, task=Task("causal-lm"))


def test_regression_learns_numbers() -> None:
    model = get_pac_model(tiny_model("bert", labels=1), CONFIG)
    data = [{**b, "labels": torch.tensor([0.5, -1.0, 2.0])} for b in batches("bert")]
    model.head.dropout.p = 0.0
    losses = train(model, data, 60)
    assert max(losses[-2:]) < 0.2 * min(losses[:2])
    assert model.eval()(**data[0]).logits.shape == (3,)


def test_a_row_of_padding_alone_is_refused() -> None:
    model = get_pac_model(tiny_model("bert"), CONFIG)
    with pytest.raises(BadInput, match="row 1 of the batch has no token"):
        model(torch.ones(2, 2, dtype=torch.long), torch.tensor([[1, 1], [0, 0]]))


# Folders that cannot be loaded.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    get_pac_model(tiny_model("gpt2"), CONFIG).save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path, base: Any = None) -> str:
    with pytest.raises(BadInput) as refused:
        PacModel.from_pretrained(base or tiny_model("gpt2"), folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_another_backbone_is_refused_with_both_names(saved: Path) -> None:
    assert "trained on gpt2" in refusal(saved, tiny_model("gpt2", seed=1))
    assert "given is a llama" in refusal(saved, tiny_model("llama"))


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_weights_cut_short_are_refused(saved: Path, part: float) -> None:
    file = saved / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    assert str(file) in refusal(saved)


def test_missing_or_foreign_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    file = saved / "adapter_model.safetensors"
    other = get_pac_model(tiny_model("gpt2"), ParallelAdapterConfig(reduction=8))
    other.save_pretrained(tmp_path / "other")
    file.write_bytes((tmp_path / "other/adapter_model.safetensors").read_bytes())
    assert f"{file}: does not fit" in refusal(saved)
    file.unlink()
    assert f"{file}: no such file" in refusal(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pac_format": 1}', '"x"'])
def test_a_damaged_configuration_is_refused(saved: Path, text: str) -> None:
    file = saved / "adapter_config.json"
    file.write_text(text)
    assert str(file) in refusal(saved)


def test_a_later_format_is_refused(saved: Path) -> None:
    file = saved / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pac_format": 2}))
    assert "update pac-core" in refusal(saved)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")


def test_an_adapter_of_peft_is_named_as_such(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    peft.get_peft_model(tiny_model("gpt2"), config).save_pretrained(tmp_path)
    told = refusal(tmp_path)
    assert str(tmp_path / "adapter_config.json") in told
    assert "an adapter of PEFT" in told


def test_peft_refuses_our_folder(saved: Path) -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises((ValueError, KeyError, TypeError), match="PAC_PARALLEL"):
        peft.PeftModel.from_pretrained(tiny_model("gpt2"), saved)


def test_an_adapter_of_a_bfloat16_backbone_is_opened_by_path_and_refused_on_another_format(tmp_path: Path) -> None:
    base = tiny_model("bert", dtype=torch.float32)
    base.save_pretrained(tmp_path / "model")
    half = copy.deepcopy(base).bfloat16()
    get_pac_model(half, ParallelAdapterConfig(reduction=4)).save_pretrained(tmp_path / "adapter")
    opened = PacModel.from_pretrained(tmp_path / "model", tmp_path / "adapter")
    assert opened.info.dtype == torch.bfloat16
    with pytest.raises(BadInput, match=r"trained on a bfloat16 backbone.*load the model with dtype=torch.bfloat16"):
        PacModel.from_pretrained(base, tmp_path / "adapter")
