"""Runs of `FineTuner` on tiny checkpoints and data files."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pac_core.config import RunConfig
from pac_core.finetune import FineTuner, RunResult
from pac_core.testing.tiny import WORDS

Rows = list[dict[str, Any]]

NO_DROPOUT = "import torch\ntorch.nn.Dropout.forward = lambda self, values: values\n"


def text_rows(count: int, seed: int = 0) -> Rows:
    """Different texts of 2 to 12 words with a class."""
    draw = np.random.default_rng(seed)
    return [
        {"text": " ".join(draw.choice(WORDS, draw.integers(2, 13))) + f" {WORDS[i % 40]}", "label": "ab"[i % 2]}
        for i in range(count)
    ]


def answer_rows(count: int, seed: int = 0) -> Rows:
    draw = np.random.default_rng(seed)
    return [
        {
            "prompt": " ".join(draw.choice(WORDS, draw.integers(2, 8))),
            "completion": " ".join(draw.choice(WORDS, draw.integers(1, 4))),
        }
        for _ in range(count)
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Rows], str]:
    def to(name: str, rows: Rows) -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return to


@pytest.fixture
def config(tmp_path: Path, write: Any, checkpoint: Any) -> Callable[..., RunConfig]:
    """A run of two epochs on 24 short texts with an exact cache; keyword arguments are dotted with ``__``."""

    def of(rows: Rows | None = None, family: str = "bert", **changes: Any) -> RunConfig:
        given = {
            "model": str(checkpoint(family)),
            "train": write("train.jsonl", text_rows(24) if rows is None else rows),
            "output": tmp_path / "output",
            "epochs": 2,
            "batch_size": 8,
            "adapter.reduction": 4,
            "cache.dir": tmp_path / "cache",
            "cache.dtype": "float32",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        return RunConfig.build({}, given)

    return of


@pytest.fixture
def run(config: Any) -> Callable[..., RunResult]:
    def of(rows: Rows | None = None, observers: Sequence[Any] = (), **changes: Any) -> RunResult:
        return FineTuner(config(rows, **changes), observers=observers).run()

    return of


@pytest.fixture
def weights() -> Callable[[RunResult | Path], dict[str, Tensor]]:
    def of(result: RunResult | Path) -> dict[str, Tensor]:
        folder = result if isinstance(result, Path) else result.output
        return load_file(folder / "adapter_model.safetensors")

    return of


@pytest.fixture
def texts() -> Callable[..., Rows]:
    return text_rows


@pytest.fixture
def answers() -> Callable[..., Rows]:
    return answer_rows


@pytest.fixture
def no_dropout(tmp_path: Path, monkeypatch: Any) -> None:
    """In the head as well, whose dropout is no setting; here and in the processes started from here."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_DROPOUT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, values: values)


@pytest.fixture
def place(monkeypatch: Any) -> Path:
    """Where runs of several processes put the files that are to be gone in the end."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # not below tmp_path: socket files want short names
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Whether a process is gone, now or within 5 seconds."""

    def of(process: int) -> bool:
        until = time.monotonic() + 5
        while Path(f"/proc/{process}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        return not Path(f"/proc/{process}").exists()

    return of
