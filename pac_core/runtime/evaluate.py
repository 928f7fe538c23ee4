"""Evaluation and prediction: from cached taps where there are any, generated answers where the task is text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pac_core.batches import Dataset
from pac_core.config import GenerationConfig
from pac_core.data import Sample
from pac_core.encoding import Encoder
from pac_core.examples import Example, length_batches
from pac_core.generation import generate
from pac_core.metrics import compute_metrics
from pac_core.model import PacModel
from pac_core.pieces import answer_text
from pac_core.runtime.team import ALONE, Team
from pac_core.taps import pad_segments


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a data set, and what was predicted for each sample: class index, number or, where it was generated,
    text; else empty."""

    metrics: dict[str, float]
    predictions: list[Any]


@torch.no_grad()
def evaluate(
    model: PacModel,
    data: Dataset,
    on_progress: Callable[[int], None] = lambda done: None,
    team: Team = ALONE,
) -> Evaluation:
    """Loss and metrics over the samples; perplexity for tasks that generate.

    Every device of ``team`` calls it, works on its own samples, and is given the whole.
    """
    was_training = model.training
    model.eval()
    examples = data.examples
    predictions: list[Any] = [None] * len(examples)
    loss, count, done = 0.0, 0.0, 0
    own = data.of(team.rank)
    for places in length_batches([examples[i] for i in own], data.batch_size):
        indices = [own[place] for place in places]
        batch = [examples[i] for i in indices]
        taps = model.reader.read(batch)
        outputs = None if model.task.generates else model.outputs(taps)
        n = model.learnt(batch)
        loss += float(model.loss(batch, taps, outputs)) * n
        count += n
        if outputs is not None:
            for i, prediction in zip(indices, answers(model, outputs)):
                predictions[i] = prediction
        done += len(batch)
        on_progress(done)
    model.train(was_training)
    if team.size > 1:
        loss, count, *gathered = team.total([loss, count, *(prediction or 0 for prediction in predictions)])
        predictions = list(map(int, gathered)) if model.task.kind == "classification" else gathered
    mean = loss / count
    if model.task.generates:
        return Evaluation({"loss": mean, "perplexity": float(np.exp(min(mean, 700.0)))}, [])
    references = [e.target for e in examples]
    return Evaluation({"loss": mean, **compute_metrics(model.task, predictions, references)}, predictions)


def answers(model: PacModel, outputs: torch.Tensor) -> list[Any]:
    """Class indices or numbers of head outputs (rows, outputs)."""
    if model.task.kind == "classification":
        return list(outputs.argmax(-1).tolist())
    assert model.head is not None
    return list(model.head.numbers(outputs).tolist())


@torch.no_grad()
def predict(model: PacModel, examples: Sequence[Example], batch_size: int = 32) -> list[Any]:
    """Class indices or numbers, one for each example, in order."""
    model.eval()
    found: list[Any] = [None] * len(examples)
    for indices in length_batches(examples, batch_size):
        outputs = model.outputs(model.reader.read([examples[i] for i in indices]))
        for i, answer in zip(indices, answers(model, outputs)):
            found[i] = answer
    return found


def generate_texts(
    model: PacModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    config: GenerationConfig,
    *,
    batch_size: int = 32,
    seed: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The answer to each sample's prompt, in order."""
    prompts = encoder.prompts(samples)
    texts = [""] * len(samples)
    done = 0
    for indices in length_batches(prompts, batch_size):
        ids, mask, _ = pad_segments([prompts[i].segments[0] for i in indices], model.backbone.device)
        found = generate(
            model,
            ids,
            mask,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            eos_token_id=encoder.tokenizer.eos_token_id,
            seed=seed,
        )
        start = 1 if model.info.is_encoder_decoder else ids.shape[1]
        decoded = encoder.tokenizer.batch_decode(found[:, start:], skip_special_tokens=True)
        for i, text in zip(indices, decoded):
            texts[i] = text.strip()
        done += len(indices)
        on_progress(done)
    return texts


def generated_metrics(
    model: PacModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    config: GenerationConfig,
    *,
    seed: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Generated answers, and their ROUGE and BLEU against the samples' own."""
    texts = generate_texts(model, encoder, samples, config, seed=seed, on_progress=on_progress)
    return Evaluation(compute_metrics(model.task, texts, [answer_text(sample) for sample in samples]), texts)
