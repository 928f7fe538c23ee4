"""What people would use instead, for side-by-side measurements: LoRA through PEFT, and full fine-tuning.

Run as ``python -m pac_core.baselines SETTINGS.json``, in a process of its own so that its peak memory is its own;
prints one JSON object. It trains on the same examples, batches and schedule as `pac_core.finetune.FineTuner`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel

from pac_core.backbones import load_backbone
from pac_core.config import OptimizerConfig
from pac_core.contracts.backbone import BackboneSource
from pac_core.data import infer_task, read_samples
from pac_core.encoding import Encoder, load_tokenizer
from pac_core.errors import BadInput
from pac_core.examples import Example, Task, length_batches
from pac_core.memory import peak_rss_bytes
from pac_core.metrics import compute_metrics, watched
from pac_core.registry import Registry
from pac_core.runtime.optimizer import lr_factor, set_rates
from pac_core.taps import pad_segments

Method = Literal["lora", "full"]


@dataclass(frozen=True)
class BaselineSettings:
    """One baseline run.

    Attributes:
        model: folder or id of an encoder.
        train, eval: data files.
        method: ``"lora"`` (r = 8 on query and value) or ``"full"``.
        lr: peak learning rate, of the head too.
        test: a further data file that is scored at the epoch that is best on ``eval``, None for none.
        epochs, batch_size, seed: as in `pac_core.config.RunConfig`.
        autocast: whether matrix products run in bfloat16, by PyTorch's autocast; PEFT's users choose it themselves.
    """

    model: str
    train: str
    eval: str
    method: Method = "lora"
    lr: float = 2e-3
    epochs: int = 3
    batch_size: int = 32
    seed: int = 0
    test: str | None = None
    autocast: bool = False


class Baseline(nn.Module):
    """A transformers encoder that trains, with mean pooling, dropout and a linear head; pairs are read jointly."""

    def __init__(self, model: str, method: Method, outputs: int) -> None:
        super().__init__()
        encoder = AutoModel.from_pretrained(model, add_pooling_layer=False)
        width = encoder.config.hidden_size
        if method == "lora":
            encoder = with_lora(encoder)
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        """Outputs (rows, outputs) of ids (rows, tokens) and mask (rows, tokens)."""
        extra = {} if types is None else {"token_type_ids": types}
        hidden = self.encoder(input_ids=ids, attention_mask=mask.long(), **extra).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        outputs: Tensor = self.head(self.dropout((hidden * weights).sum(1) / weights.sum(1)))
        return outputs


def with_lora(model: nn.Module, targets: Sequence[str] = ("query", "value")) -> nn.Module:
    """``model`` under PEFT's LoRA with r = 8, alpha = 16 on ``targets``.

    Raises:
        BadInput: the package peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise BadInput('comparing with LoRA needs the package peft; pip install "pac-core[demo]"') from error
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=list(targets))
    return get_peft_model(model, config)  # type: ignore[no-any-return]


def run_baseline(settings: BaselineSettings, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train and evaluate after every epoch.

    Returns:
        ``{"epochs": [{"epoch", "seconds", "loss", "eval"}], "eval", "test", "peak_rss_bytes", "trainable_params"}``
    """
    task, train, evaluation, test = _data(settings)
    tested: dict[str, float] | None = None
    torch.manual_seed(settings.seed)
    model = Baseline(settings.model, settings.method, task.outputs)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": trained, "lr": settings.lr, "peak": settings.lr}], weight_decay=0.01, fused=True
    )
    numbers = [float(e.target) for e in train if isinstance(e.target, int | float)]
    scale = (float(np.mean(numbers)), float(np.std(numbers)) or 1.0)
    steps = -(-len(train) // settings.batch_size) * settings.epochs
    rate, step, records, best = lr_factor(OptimizerConfig(), steps), 0, [], -math.inf
    for epoch in range(1, settings.epochs + 1):
        began, losses = time.perf_counter(), []
        model.train()
        for indices in length_batches(
            train, settings.batch_size, generator=np.random.default_rng((settings.seed, epoch))
        ):
            batch = [train[i] for i in indices]
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
                outputs = model(*_tensors(batch))
            loss = _loss(task, outputs.float(), batch, scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            set_rates(optimizer, rate(step))
            optimizer.step()
            step += 1
            losses.append(loss.item())
        seconds = time.perf_counter() - began
        scores = _evaluate(model, task, evaluation, scale)
        records.append({"epoch": epoch, "seconds": seconds, "loss": float(np.mean(losses)), "eval": scores})
        value = watched(scores)
        assert value is not None
        if test and value > best:
            best, tested = value, _evaluate(model, task, test, scale)
        say(f"{settings.method} epoch {epoch}: {seconds:.1f} s  loss {records[-1]['loss']:.4f}")
    return {
        "settings": asdict(settings),
        "test": tested,
        "epochs": records,
        "eval": records[-1]["eval"],
        "peak_rss_bytes": peak_rss_bytes(),
        "trainable_params": sum(p.numel() for p in trained),
    }


def _data(settings: BaselineSettings) -> tuple[Task, list[Example], list[Example], list[Example]]:
    samples = read_samples(settings.train)
    info = load_backbone(BackboneSource(path=settings.model, layers={"encoder": (0, 0)}), Registry()).info
    task = infer_task(samples, info=info)
    encoder = Encoder(load_tokenizer(settings.model), task, info)
    test = [] if settings.test is None else encoder(read_samples(settings.test))
    return task, encoder(samples), encoder(read_samples(settings.eval)), test


def _tensors(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor | None]:
    return pad_segments([e.segments[0] for e in batch], torch.device("cpu"))


def _loss(task: Task, outputs: Tensor, batch: Sequence[Example], scale: tuple[float, float]) -> Tensor:
    targets = torch.tensor([e.target for e in batch])
    if task.kind == "regression":
        return nn.functional.mse_loss(outputs[:, 0], (targets.float() - scale[0]) / scale[1])
    return nn.functional.cross_entropy(outputs, targets)


@torch.no_grad()
def _evaluate(
    model: nn.Module, task: Task, examples: Sequence[Example], scale: tuple[float, float]
) -> dict[str, float]:
    model.eval()
    found: list[Any] = [None] * len(examples)
    for indices in length_batches(examples, 64):
        outputs = model(*_tensors([examples[i] for i in indices]))
        values = outputs.argmax(-1) if task.kind == "classification" else outputs[:, 0] * scale[1] + scale[0]
        for i, value in zip(indices, values.tolist()):
            found[i] = value
    return compute_metrics(task, found, [e.target for e in examples])


def main() -> None:
    """Run the settings in the JSON file named on the command line."""
    settings = BaselineSettings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(run_baseline(settings, lambda text: print(text, file=sys.stderr, flush=True))))


if __name__ == "__main__":
    main()
