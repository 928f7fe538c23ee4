"""Generation: the tokens that full recomputation gives, each computed once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pac_core.contracts.adapter import AdapterConfig, BottleneckAdapterConfig, ParallelAdapterConfig
from pac_core.errors import BadInput, RunFailed
from pac_core.generation import Sampling, choose
from pac_core.model import PacModel, get_pac_model
from pac_core.testing.tiny import tiny_model

DECODERS = ["gpt2", "llama"]
PAIRED = ["t5", "bart"]
NO_EOS = 1000  # beyond the vocabulary
ADAPTERS = {
    "parallel": ParallelAdapterConfig(reduction=4, dropout=0.0),
    "bottleneck": BottleneckAdapterConfig(reduction=4, dropout=0.0, tap_every=2),
}


def trained_model(base: Any, config: AdapterConfig) -> PacModel:
    """After steps that make it answer otherwise than the frozen model."""
    torch.manual_seed(0)
    model = get_pac_model(base, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    ids = torch.randint(4, 64, (6, 7))
    labels = torch.randint(4, 64, (6, 5)) if model.info.is_encoder_decoder else ids
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> Callable[..., tuple[Any, PacModel]]:
    made: dict[tuple[str, str], tuple[Any, PacModel]] = {}

    def of(family: str, adapter: str = "parallel") -> tuple[Any, PacModel]:
        if (family, adapter) not in made:
            base = tiny_model(family)
            made[family, adapter] = base, trained_model(base, ADAPTERS[adapter])
        return made[family, adapter]

    return of


def prompts(lengths: list[int], side: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(4, 60, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))[None]
    counts = torch.tensor(lengths)[:, None]
    mask = places < counts if side == "right" else places >= max(lengths) - counts
    return ids.masked_fill(~mask, 0), mask.long()


@torch.no_grad()
def recomputed(model: PacModel, ids: list[int], new: int, eos: int) -> list[int]:
    """The likeliest tokens, each found by running everything again with ``forward``."""
    answer: list[int] = []
    while len(answer) < new and eos not in answer:
        if model.info.is_encoder_decoder:
            fed = torch.tensor([[model.backbone.decoder_start(), *answer]])
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=fed).logits
        else:
            logits = model(input_ids=torch.tensor([[*ids, *answer]])).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", DECODERS + PAIRED)
def test_tokens_are_those_of_full_recomputation(trained: Any, family: str, side: str, adapter: str) -> None:
    _, model = trained(family, adapter)
    ids, mask = prompts([3, 6, 3, 1], side)
    found = model.generate(ids, mask, max_new_tokens=9, eos_token_id=NO_EOS, pad_token_id=0)
    start = 1 if model.info.is_encoder_decoder else ids.shape[1]
    for row, real, answer in zip(ids, mask.bool(), found[:, start:].tolist(), strict=True):
        expected = recomputed(model, row[real].tolist(), 9, NO_EOS)
        assert answer[: len(expected)] == expected
        assert set(answer[len(expected) :]) <= {0}
    kept = found[:, :start]
    assert torch.equal(kept, ids if start > 1 else torch.full((4, 1), model.backbone.decoder_start()))


@pytest.mark.parametrize("family", DECODERS + PAIRED)
def test_the_side_network_matters_for_what_is_said(trained: Any, family: str) -> None:
    base, model = trained(family)
    ids, mask = prompts([4, 4, 4, 4], "right")
    fresh = get_pac_model(base, ADAPTERS["parallel"])
    said = [m.generate(ids, mask, max_new_tokens=6, eos_token_id=NO_EOS) for m in (model, fresh)]
    assert not torch.equal(*said)


@pytest.mark.parametrize("family", [*DECODERS, "bart"])
def test_an_untrained_model_says_what_the_frozen_one_says(family: str) -> None:
    base = tiny_model(family)
    ids, _ = prompts([5, 5], "right")
    found = get_pac_model(base, ADAPTERS["parallel"]).generate(ids, max_new_tokens=8)
    expected = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, num_beams=1)
    assert torch.equal(found[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("family", DECODERS + PAIRED)
def test_a_row_ends_at_eos_and_is_padded_behind_it(trained: Any, family: str) -> None:
    _, model = trained(family)
    ids, mask = prompts([3, 6, 2], "right")
    start = 1 if model.info.is_encoder_decoder else ids.shape[1]
    free = model.generate(ids, mask, max_new_tokens=8, eos_token_id=NO_EOS)[:, start:]
    eos = int(free[0, 2])
    found = model.generate(ids, mask, max_new_tokens=8, eos_token_id=[eos, NO_EOS], pad_token_id=5)[:, start:].tolist()
    for answer, whole in zip(found, free.tolist(), strict=True):
        length = whole.index(eos) + 1 if eos in whole else len(whole)
        assert answer == (whole[:length] + [5] * 8)[: len(answer)]
    assert eos in found[0]


def test_nothing_is_computed_once_all_rows_have_ended(trained: Any, count_layers: Any) -> None:
    base, model = trained("gpt2")
    ids, _ = prompts([4], "right")
    eos = int(model.generate(ids, max_new_tokens=1)[0, -1])
    calls = count_layers(base)
    found = model.generate(ids, max_new_tokens=40, eos_token_id=eos)
    assert found.shape[1] == 5
    assert calls["tokens"] == 4 * model.info.streams[0].layers


@pytest.mark.parametrize("family", DECODERS + PAIRED)
def test_each_token_goes_through_the_layers_once(trained: Any, count_layers: Any, family: str) -> None:
    base, model = trained(family)
    ids, _ = prompts([5, 5], "right")
    calls = count_layers(base)
    layers = {stream.name: stream.layers for stream in model.info.streams}
    for new in (1, 10, 20):
        calls.reset()
        model.generate(ids, max_new_tokens=new, eos_token_id=NO_EOS)
        if model.info.is_encoder_decoder:
            assert calls["tokens"] == 2 * (5 * layers["encoder"] + new * layers["decoder"])
        else:
            assert calls["tokens"] == 2 * (5 + new - 1) * layers["decoder"]


def test_sampling_is_reproduced_by_its_seed(trained: Any) -> None:
    _, model = trained("llama")
    ids, mask = prompts([3, 5], "left")
    one, same, other = (
        model.generate(ids, mask, max_new_tokens=12, temperature=1.5, eos_token_id=NO_EOS, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_top_p_leaves_only_the_likeliest_tokens() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]]).expand(500, 4)
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits, Sampling(temperature=1.0, top_p=0.8), generator)
    assert set(drawn.tolist()) == {1, 2}
    assert set(choose(logits, Sampling(temperature=1.0, top_p=0.5), generator).tolist()) == {1}
    assert set(choose(logits, Sampling(temperature=1.0), generator).tolist()) == {0, 1, 2, 3}


def test_tokens_are_told_as_they_come(trained: Any) -> None:
    _, model = trained("t5")
    ids, mask = prompts([3, 5], "right")
    told: list[Tensor] = []
    found = model.generate(ids, mask, max_new_tokens=6, eos_token_id=NO_EOS, on_token=told.append)
    assert torch.equal(torch.stack(told, 1), found[:, 1:])


def test_training_mode_comes_back(trained: Any) -> None:
    _, model = trained("gpt2")
    model.train()
    model.generate(torch.tensor([[4, 5]]), max_new_tokens=1)
    assert model.training
    model.eval()


def test_without_a_padding_token_rows_end_with_end_tokens() -> None:
    base = tiny_model("gpt2")
    base.config.pad_token_id = None
    model = get_pac_model(base, ADAPTERS["parallel"])
    ids, mask = prompts([3, 6, 2, 5], "right")
    free = model.generate(ids, mask, max_new_tokens=8, eos_token_id=NO_EOS)[:, 6:]
    eos = int(free[0, 1])
    ended = model.generate(ids, mask, max_new_tokens=8, eos_token_id=eos)[0, 6:].tolist()
    assert set(ended[ended.index(eos) :]) == {eos}


def test_answers_end_where_the_model_takes_no_more_tokens(trained: Any) -> None:
    _, model = trained("gpt2")
    most = model.info.max_tokens
    assert model.generate(torch.full((1, most - 3), 5), max_new_tokens=20, eos_token_id=NO_EOS).shape[1] == most + 1
    with pytest.raises(BadInput, match=f"{most + 1} tokens"):
        model.generate(torch.full((1, most + 1), 5), max_new_tokens=2)


def test_a_model_that_classifies_gives_no_text() -> None:
    with pytest.raises(BadInput, match="classification gives no text"):
        get_pac_model(tiny_model("bert"), ADAPTERS["parallel"]).generate(torch.tensor([[4, 5]]))


def test_a_released_backbone_is_told_about() -> None:
    model = get_pac_model(tiny_model("gpt2"), ADAPTERS["parallel"])
    model.release_backbone()
    with pytest.raises(RunFailed, match="has been released"):
        model.generate(torch.tensor([[4, 5]]))
