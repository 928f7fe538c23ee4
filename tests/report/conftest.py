"""What reports are made of, and a browser to open them."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pac_core.report import Content, DeviceUse, Outcome, PhaseUse
from pac_core.spans import Span

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def epoch(number: int, loss: float, accuracy: float) -> dict[str, Any]:
    return {
        "epoch": number,
        "phase": "cached",
        "seconds": 1.5,
        "loss": loss,
        "samples": 100,
        "tokens": 900,
        "backbone_samples": 0,
        "cache_hits": 100,
        "bytes_sent": 10,
        "eval": {"loss": loss + 0.1, "accuracy": accuracy, "perplexity": 4.0},
    }


def device(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "cpu",
        "threads": 1,
        "samples_filled": 50,
        "seconds": 4.0,
        "seconds_busy": 3.0,
        "bytes_sent": 2**20,
        "peak_rss_bytes": 2**29,
    }


PLAN = {
    "scheduler": "pac",
    "schedule": "1f1b",
    "stages": [
        {"devices": ["desk"], "layers": {"encoder": [0, 2]}, "rows": [4]},
        {"devices": ["pi"], "layers": {"encoder": [2, 3]}, "rows": [4]},
    ],
    "micro_batch_size": 4,
    "micro_batches": 2,
}

METRICS = {
    "epochs": [epoch(1, 0.9, 0.5), epoch(2, 0.4, 0.75)],
    "eval": {"loss": 0.5, "accuracy": 0.75, "perplexity": 4.0},
    "eval_before": {"loss": 1.2, "accuracy": 0.25, "perplexity": 9.0},
    "peak_rss_bytes": 2**29,
    "trainable_params": 1234,
    "cache": {"entries": 100, "bytes": 5000, "bytes_raw": 9000, "damaged": 0},
    "plan": PLAN,
    "devices": [device("desk"), device("pi")],
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
}

SPANS = (
    Span("desk", "forward", 0, 10.0, 10.25),
    Span("desk", "forward", 1, 10.25, 10.5),
    Span("desk", "wait", 0, 10.5, 11.0),
    Span("desk", "backward", 0, 11.0, 11.25),
    Span("desk", "update", None, 11.5, 12.0),
    Span("pi", "forward", 0, 10.25, 10.5),
    Span("pi", "backward", 0, 10.5, 11.0),
)


@pytest.fixture
def content() -> Callable[..., Content]:
    """A run of two stages; keyword arguments replace parts of it."""

    def of(**changes: Any) -> Content:
        whole = Content(
            config={"model": "./minilm", "train": "a.tsv", "adapter": {"name": "parallel", "reduction": 8}},
            metrics=METRICS,
            task="classification",
            train_samples=100,
            eval_samples=40,
            phases=(PhaseUse("load", 2.0, 2**28), PhaseUse("cached", 3.0, 2**29)),
            device_use=(DeviceUse("desk", "cached", 0.9, 2**20, 2**29), DeviceUse("pi", "cached", 0.8, 0.0, 2**28)),
            timeline=SPANS,
            outcomes=(Outcome("a good film", "bad", "good", False), Outcome("a bad film", "bad", "bad", True)),
        )
        return replace(whole, **changes)

    return of


@pytest.fixture(scope="session")
def browse() -> Callable[[Path, str], str]:
    """Opens a page in headless Chromium and gives its HTML once scripts have run."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here; apt-get install chromium")

    def dump(page: Path) -> str:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
        profile = f"--user-data-dir={page.parent / 'profile'}"
        ended = subprocess.run(
            [found, *flags, profile, "--window-size=1000,1000", "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return ended.stdout

    return dump
