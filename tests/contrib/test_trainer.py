"""``get_pac_model`` in transformers' Trainer, unchanged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pac_core.cache import ActivationCache
from pac_core.contracts.adapter import ParallelAdapterConfig
from pac_core.model import PacModel, get_pac_model
from pac_core.testing.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("accelerate")
import transformers as hf

CONFIG = ParallelAdapterConfig(reduction=4, dropout=0.0)
FAMILIES = ["bert", "gpt2", "llama", "t5"]
Row = dict[str, Any]


def rows(family: str, count: int, seed: int = 0) -> list[Row]:
    """Unpadded samples, as a tokenised data set holds them."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        ids = draw.integers(4, 40, draw.integers(3, 9)).tolist()
        row: Row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if family == "bert":
            row["labels"] = i % 3
        elif family == "t5":
            row["labels"] = draw.integers(4, 40, draw.integers(1, 6)).tolist()
        found.append(row)
    return found


def collator(family: str) -> Any:
    tokenizer = tiny_tokenizer()
    if family == "bert":
        return hf.DataCollatorWithPadding(tokenizer)
    if family == "t5":
        return hf.DataCollatorForSeq2Seq(tokenizer)
    tokenizer.padding_side = "left" if family == "llama" else "right"
    return hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)


def trainer(model: PacModel, family: str, folder: Path, **arguments: Any) -> Any:
    given = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 3,
        "learning_rate": 0.02,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        **arguments,
    }
    return hf.Trainer(
        model,
        hf.TrainingArguments(str(folder), **given),
        train_dataset=rows(family, 16),
        eval_dataset=rows(family, 8, seed=1),
        data_collator=collator(family),
        compute_metrics=None if family == "t5" else accuracy,
    )


def accuracy(found: Any) -> dict[str, float]:
    logits, labels = found.predictions, found.label_ids
    if logits.ndim == 3:  # a causal model: position t predicts token t + 1
        logits, labels = logits[:, :-1], labels[:, 1:]
    wanted = labels != -100
    return {"accuracy": float((logits.argmax(-1) == labels)[wanted].mean())}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_serves_from_epoch_two_on(tmp_path: Path, count_layers: Any, family: str) -> None:
    base = tiny_model(family)
    calls = count_layers(base)
    by_epoch: list[int] = []

    class Watch(hf.TrainerCallback):
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            by_epoch.append(calls["calls"])

    with ActivationCache.open("disk", tmp_path / "cache", dtype="float32") as cache:
        model = get_pac_model(base, CONFIG, cache=cache)
        run = trainer(model, family, tmp_path)
        run.add_callback(Watch())
        before = run.evaluate()["eval_loss"]
        calls.reset()
        run.train()
        assert by_epoch[0] > 0
        assert by_epoch[1:] == [by_epoch[0]] * 2
        assert model.reader.counters.backbone_samples == 16 + 8
        calls.reset()
        after = run.evaluate()
        assert calls["calls"] == 0
    assert after["eval_loss"] != before
    if family != "t5":
        assert 0 <= after["eval_accuracy"] <= 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_lie_where_the_labels_are_whatever_the_padding(tmp_path: Path, family: str) -> None:
    """A frozen model's predictions are those of transformers' own forward, at the same places."""
    base = tiny_model(family)
    ours = trainer(get_pac_model(base, CONFIG), family, tmp_path)
    theirs = trainer(base, family, tmp_path)
    found, expected = ours.predict(ours.eval_dataset), theirs.predict(theirs.eval_dataset)
    assert np.array_equal(found.label_ids, expected.label_ids)
    real = found.label_ids != -100
    np.testing.assert_allclose(found.predictions[real], expected.predictions[real], rtol=1e-3, atol=1e-4)
    assert found.metrics["test_accuracy"] >= 0


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_steps_are_those_of_whole_batches(tmp_path: Path, family: str) -> None:
    """Two micro-batches of 4 learn what one batch of 8 learns, also where rows hold different numbers of tokens."""
    states: list[dict[str, Tensor]] = []
    for size, steps in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model = get_pac_model(tiny_model(family, dtype=torch.float64), CONFIG)
        if model.head is not None:
            model.head.dropout.p = 0.0
        model.calibrated.fill_(True)  # else scales come from the first batch, which differs in size
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "num_train_epochs": 1}
        trainer(model, family, tmp_path, **arguments, optim="sgd", max_grad_norm=0.0).train()
        states.append(model.state_dict())
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_checkpoints_of_the_trainer_hold_the_adapter_and_resume(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    model = get_pac_model(tiny_model(family), CONFIG)
    run = trainer(model, family, tmp_path, save_strategy="epoch", num_train_epochs=2)
    run.train()
    saved = sorted(tmp_path.glob("checkpoint-*"))
    assert len(saved) == 2
    fresh = get_pac_model(tiny_model(family), CONFIG)
    again = trainer(fresh, family, tmp_path, save_strategy="no", num_train_epochs=2)
    again.train(resume_from_checkpoint=str(saved[0]))
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_a_model_trained_by_the_trainer_is_saved_and_loaded(tmp_path: Path) -> None:
    model = get_pac_model(tiny_model("gpt2"), CONFIG)
    trainer(model, "gpt2", tmp_path, num_train_epochs=1).train()
    model.save_pretrained(tmp_path / "adapter")
    loaded = PacModel.from_pretrained(tiny_model("gpt2"), tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_predictions_of_a_classifier_come_in_order(tmp_path: Path) -> None:
    model = get_pac_model(tiny_model("bert"), CONFIG)
    run = trainer(model, "bert", tmp_path)
    run.train()
    found = run.predict(run.eval_dataset).predictions
    alone = [model.eval()(torch.tensor([row["input_ids"]])).logits[0] for row in run.eval_dataset]
    np.testing.assert_allclose(found, torch.stack(alone).detach().numpy(), rtol=1e-4, atol=1e-5)
