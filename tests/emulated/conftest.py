"""Runs of emulated devices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf

from pac_core.testing.hollow import save_hollow
from pac_core.testing.tiny import WORDS

TOKENS = 48


@pytest.fixture(scope="session")
def hollow(tmp_path_factory: Any) -> Path:
    """Four layers of BERT-base's widths."""
    return save_hollow(tmp_path_factory.mktemp("hollow"), hf.BertConfig(num_hidden_layers=4))


@pytest.fixture
def given(hollow: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A run on 32 texts of so many tokens, as plain data."""

    def of(**changes: Any) -> dict[str, Any]:
        draw = np.random.default_rng(0)
        texts = [" ".join(draw.choice(WORDS, TOKENS - 1)) for _ in range(32)]
        rows = (json.dumps({"text": text, "label": "ab"[i % 2]}) for i, text in enumerate(texts))
        (tmp_path / "train.jsonl").write_text("\n".join(rows))
        return {
            "model": str(hollow),
            "train": str(tmp_path / "train.jsonl"),
            "output": str(tmp_path / "output"),
            "emulate": "jetson-nano",
            "dtype": "float32",
            "batch_size": 8,
            "epochs": 2,
            **changes,
        }

    return of
