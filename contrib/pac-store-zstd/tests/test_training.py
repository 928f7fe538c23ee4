"""A training run with entries in this store: the same numbers as without a cache, and no backbone from epoch 2 on."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

import pac_core

EPOCHS = 3
ROWS = 6


def make_base() -> BertForSequenceClassification:
    """A tiny random BERT."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).eval()


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (ROWS, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(ROWS) % 2}


def train(cache: pac_core.ActivationCache | None) -> tuple[list[float], int]:
    """The loss of each epoch, and how often a layer of the backbone ran."""
    base, passes = make_base(), []
    base.bert.encoder.layer[0].register_forward_hook(lambda *_: passes.append(1))
    torch.manual_seed(2)
    model = pac_core.get_pac_model(base, pac_core.ParallelAdapterConfig(reduction=4), cache=cache)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(EPOCHS):
        loss = model(**make_batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, len(passes)


def test_training_from_compressed_entries_equals_training_without_a_cache() -> None:
    with pac_core.ActivationCache.open("zstd+memory", dtype="float32") as cache:
        cached, passes = train(cache)
        stats = cache.stats()
    assert stats.entries == ROWS
    assert 0 < stats.bytes < stats.bytes_raw
    uncached, all_passes = train(None)
    assert cached == uncached
    assert all_passes == EPOCHS * passes
    assert cached[-1] < cached[0]
