"""Cached, uncached and plain PyTorch agree: loss, and the gradient of every parameter.

The plain implementation below shares no code with the side network: it runs transformers' own forward on each row
alone, and writes the side network's arithmetic out from its state dict.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from pac_core.cache import ActivationCache
from pac_core.contracts.adapter import ParallelAdapterConfig
from pac_core.model import PacModel, get_pac_model
from pac_core.testing.tiny import tiny_model

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
FAMILIES = ["bert", "gpt2", "llama", "t5", "bart"]
STORES = ["memory", "disk", "lz4+memory", "lz4+disk"]
CONFIG = ParallelAdapterConfig(reduction=4, heads=2, dropout=0.0)
DRAWN = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bert": F.gelu,
    "gpt2": lambda x: F.gelu(x, approximate="tanh"),
    "llama": F.silu,
    "t5": F.relu,
    "bart": F.gelu,
}
Params = dict[str, Tensor]
RowTaps = dict[str, Tensor]  # by stream, (taps, tokens, d)


@dataclass(frozen=True)
class Data:
    """Rows of token ids, and their labels: one class each, or token ids each."""

    rows: list[list[int]]
    labels: list[Any]

    def batch(self, left: bool = False) -> dict[str, Tensor]:
        width = max(map(len, self.rows))

        def padded(row: list[int], fill: int) -> list[int]:
            rest = [fill] * (width - len(row))
            return rest + row if left else row + rest

        ids = torch.tensor([padded(row, 0) for row in self.rows])
        mask = torch.tensor([padded([1] * len(row), 0) for row in self.rows])
        if isinstance(self.labels[0], int):
            labels = torch.tensor(self.labels)
        elif self.labels[0] is self.rows[0]:
            labels = ids.masked_fill(mask == 0, -100)
        else:
            widest = max(map(len, self.labels))
            labels = torch.tensor([row + [-100] * (widest - len(row)) for row in self.labels])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def part(self, rows: list[int]) -> "Data":
        return Data([self.rows[i] for i in rows], [self.labels[i] for i in rows])


def make_data(family: str, lengths: list[int], seed: int) -> Data:
    """Random rows; for causal models of two tokens at least, so that there is something to predict."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(4, 64, (length,), generator=generator).tolist()

    rows = [ids(n + 1) for n in lengths]
    if family == "bert":
        return Data(rows, [n % 3 for n in lengths])
    if family in ("t5", "bart"):
        return Data(rows, [ids(1 + (n * 5) % 7) for n in lengths])
    return Data(rows, rows)


@cache
def hf_model(family: str, dtype: torch.dtype = torch.float64) -> Any:
    return tiny_model(family, dtype=dtype)


def pac_model(family: str, store: ActivationCache | None, dtype: torch.dtype = torch.float64) -> PacModel:
    """A model whose every parameter and scale is off its first value."""
    torch.manual_seed(0)
    model = get_pac_model(hf_model(family, dtype), CONFIG, cache=store)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name == "calibrated":
            tensor.fill_(True)
        elif name.endswith(("scale", "deviation")):
            tensor.copy_(noise.abs() + 0.5)
        else:
            tensor.add_(noise.to(dtype) * 0.2)
    if model.head is not None:
        model.head.dropout.p = 0.0
    return model.train()


# Plain PyTorch.


def row_taps(family: str, data: Data) -> list[RowTaps]:
    """Transformers' hidden states of each row, run alone and without padding."""
    model, found = hf_model(family), []
    for row, label in zip(data.rows, data.labels, strict=True):
        ids = torch.tensor([row])
        if family in ("t5", "bart"):
            fed = torch.tensor([[model.config.decoder_start_token_id, *label[:-1]]])
            out = model(ids, decoder_input_ids=fed, output_hidden_states=True)
            streams = {"encoder": out.encoder_hidden_states, "decoder": out.decoder_hidden_states}
        else:
            name = "encoder" if family == "bert" else "decoder"
            streams = {name: model(ids, output_hidden_states=True).hidden_states}
        found.append({name: torch.cat(states).detach() for name, states in streams.items()})
    return found


def linear(p: Params, name: str, x: Tensor) -> Tensor:
    bias = p.get(f"{name}.bias")
    return x @ p[f"{name}.weight"].T + (0 if bias is None else bias)


def norm(p: Params, name: str, x: Tensor, family: str) -> Tensor:
    if f"{name}.bias" not in p:  # root mean square
        eps = 1e-6
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{name}.weight"]
    eps = {"bert": 1e-12}.get(family, 1e-5)
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    outs, width = [], q.shape[1] // 2
    for head in (slice(0, width), slice(width, None)):
        scores = q[:, head] @ k[:, head].T / math.sqrt(width)
        if causal:
            scores = scores + torch.full_like(scores, -math.inf).triu(1)
        outs.append(scores.softmax(-1) @ v[:, head])
    return torch.cat(outs, 1)


def side_stream(p: Params, family: str, stream: str, taps: Tensor, memory: Tensor | None) -> Tensor:
    """The last state (tokens, r) of one row."""
    s = f"side.streams.{stream}"
    act = ACTS[family]
    state = norm(p, f"{s}.enter.norm", linear(p, f"{s}.enter.down", taps[0]), family)
    mix = state * p[f"{s}.share"]
    for i in range(1, len(taps)):
        at = f"{s}.layers.{i}"
        gate = 1 / (1 + (-p[f"{at}.gate"]).exp())
        x = gate * norm(p, f"{at}.read.norm", linear(p, f"{at}.read.down", taps[i]), family) + (1 - gate) * state
        q, k, v = linear(p, f"{at}.attention.qkv", x).chunk(3, -1)
        mixed = linear(p, f"{at}.attention.out", attend(q, k, v, stream == "decoder"))
        x = norm(p, f"{at}.attention_norm", x + mixed, family)
        if memory is not None:
            k, v = linear(p, f"{at}.cross.kv", memory).chunk(2, -1)
            seen = attend(linear(p, f"{at}.cross.query", x), k, v, False)
            x = norm(p, f"{at}.cross_norm", x + linear(p, f"{at}.cross.out", seen), family)
        inner = linear(p, f"{at}.mlp.up", x)
        if family == "llama":
            shut, inner = inner.chunk(2, -1)
            inner = act(shut) * inner
        else:
            inner = act(inner)
        state = norm(p, f"{at}.mlp_norm", x + linear(p, f"{at}.mlp.down", inner), family)
        mix = mix + state * p[f"{at}.share"]
    return mix


def plain_loss(p: Params, family: str, data: Data, taps: list[RowTaps]) -> Tensor:
    losses, counts = [], []
    for row, label, given_taps in zip(data.rows, data.labels, taps, strict=True):
        memory = None
        for stream, values in given_taps.items():
            state = side_stream(p, family, stream, values, memory)
            memory = state
        hidden = (
            values[-1] + linear(p, f"side.streams.{stream}.exit.up", state) * p[f"side.streams.{stream}.exit.scale"]
        )
        if family == "bert":
            features = (hidden.mean(0) - p["head.mean"]) / p["head.deviation"]
            mean = state.mean(0)
            centred = mean - mean.mean()
            normed = centred / (centred.square().mean() + 1e-5).sqrt()
            normed = normed * p["head.state_norm.weight"] + p["head.state_norm.bias"]
            narrow = torch.cat([normed, state.max(0).values])
            logits = (linear(p, "head.wide", features) + linear(p, "head.narrow", narrow))[None]
            target = torch.tensor([label])
        else:
            logits, target = lm_logits(family, hidden), torch.tensor(label)
            if label is row:
                logits, target = logits[:-1], target[1:]
        losses.append((logits.logsumexp(-1) - logits.gather(-1, target[:, None])[:, 0]).sum())
        counts.append(len(target))
    return torch.stack(losses).sum() / sum(counts)


def lm_logits(family: str, hidden: Tensor) -> Tensor:
    model = hf_model(family)
    scaled = hidden * (32**-0.5 if family == "t5" else 1.0)
    logits = scaled @ model.lm_head.weight.detach().T
    return logits + model.final_logits_bias if family == "bart" else logits


def params_of(model: PacModel) -> Params:
    names = {name for name, _ in model.named_parameters()}
    return {k: v.detach().clone().requires_grad_(k in names) for k, v in model.state_dict().items()}


def plain(model: PacModel, family: str, data: Data, taps: list[RowTaps] | None = None) -> tuple[Tensor, Params]:
    """Loss and gradients (zero for parameters that have no part in it) of the plain implementation."""
    p = params_of(model)
    loss = plain_loss(p, family, data, row_taps(family, data) if taps is None else taps)
    loss.backward()
    named = dict(model.named_parameters())
    return loss.detach(), {k: torch.zeros_like(p[k]) if p[k].grad is None else p[k].grad for k in named}


def ours(model: PacModel, batch: dict[str, Tensor]) -> tuple[Tensor, Params]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {k: torch.zeros_like(v) if v.grad is None else v.grad.clone() for k, v in model.named_parameters()}
    return loss.detach(), found


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., ActivationCache]]:
    caches: list[ActivationCache] = []

    def make(store: str, dtype: str) -> ActivationCache:
        caches.append(ActivationCache.open(store, tmp_path / str(len(caches)), dtype=dtype))
        return caches[-1]

    yield make
    for one in caches:
        one.close()


# Tests.


@pytest.mark.parametrize("family", FAMILIES)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    store=st.sampled_from(STORES),
    left=st.booleans(),
    data=st.data(),
)
@DRAWN
def test_cached_uncached_and_plain_agree(
    opened: Any, family: str, lengths: list[int], seed: int, store: str, left: bool, data: Any
) -> None:
    rows = make_data(family, lengths, seed)
    cached, uncached = pac_model(family, opened(store, "float64")), pac_model(family, None)
    order = data.draw(st.permutations(range(len(lengths))), label="order of filling")
    cut = data.draw(st.integers(0, len(lengths)), label="cut")
    for filling in filter(None, (order[:cut], order[cut:])):
        cached(**rows.part(list(filling)).batch())
    expected = plain(uncached, family, rows)
    assert_close(ours(uncached, rows.batch(left)), expected, **CLOSE)
    before = cached.reader.counters.backbone_samples
    assert_close(ours(cached, rows.batch(left)), expected, **CLOSE)
    assert cached.reader.counters.backbone_samples == before
    assert max(g.abs().max() for g in expected[1].values()) > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), store=st.sampled_from(STORES))
@settings(DRAWN, max_examples=6)
def test_float32_caches_give_the_same_bits(opened: Any, family: str, lengths: list[int], store: str) -> None:
    batch = make_data(family, lengths, 3).batch()
    cached = pac_model(family, opened(store, "float32"), torch.float32)
    uncached = pac_model(family, None, torch.float32)
    expected = ours(uncached, batch)
    for _ in range(2):
        loss, gradients = ours(cached, batch)
        assert torch.equal(loss, expected[0])
        assert [k for k, g in gradients.items() if not torch.equal(g, expected[1][k])] == []
    assert cached.reader.counters.backbone_samples == len(lengths)


def rounded(x: Tensor, dtype: str) -> Tensor:
    """What the lossy codec makes of (taps, tokens, d), from its definition: d is one block here."""
    if dtype == "bfloat16":
        return x.to(torch.bfloat16).double()
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    return (x.float() / scale).round().double() * scale.double()


def largest_error(x: Tensor, dtype: str) -> Tensor:
    """The codec's bound: 8 significant bits rounded to nearest, or half a step of 127 between 0 and the maximum."""
    if dtype == "bfloat16":
        return x.abs() * 2**-8
    return (x.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-4)).expand_as(x)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_lossy_caches_stay_within_what_the_codecs_error_allows(opened: Any, family: str, dtype: str) -> None:
    """The cached gradient g' is exactly that of rounded taps, and |g' - g| is bounded by the codec's error e.

    To first order ``|<g' - g, v>| <= sum_i |d<g, v>/db_i| e_i`` for any v; with v along g' - g the left side is its
    norm. Twice that bound leaves room for the curvature.
    """
    data = make_data(family, [3, 6, 2], 5)
    model = pac_model(family, opened("memory", dtype))
    exact = [{s: t.clone().requires_grad_() for s, t in row.items()} for row in row_taps(family, data)]
    lossy = [{s: rounded(t.detach(), dtype) for s, t in row.items()} for row in exact]
    for one, other in zip(exact, lossy, strict=True):
        for stream, x in one.items():
            assert ((x - other[stream]).abs() <= largest_error(x, dtype)).all()
    ours(model, data.batch())
    found = ours(model, data.batch())
    assert_close(found, plain(model, family, data, lossy), **CLOSE)

    p = params_of(model)
    leaves = {k: v for k, v in p.items() if v.requires_grad}
    gradients = torch.autograd.grad(
        plain_loss(p, family, data, exact), list(leaves.values()), create_graph=True, materialize_grads=True
    )
    difference = [found[1][k] - g.detach() for k, g in zip(leaves, gradients, strict=True)]
    size = torch.stack([d.square().sum() for d in difference]).sum().sqrt()
    assert size > 0
    along = torch.stack([(g * d).sum() for g, d in zip(gradients, difference, strict=True)]).sum() / size
    inputs = [t for row in exact for t in row.values()]
    slopes = torch.autograd.grad(along, inputs)
    bound = sum((s.abs() * largest_error(x.detach(), dtype)).sum() for s, x in zip(slopes, inputs, strict=True))
    assert size <= 2 * bound
