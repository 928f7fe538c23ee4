"""Small models run fastest on one thread, and nothing is ever fetched."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
if "PAC_RANDOM_PLANS" not in os.environ:  # the long run draws other examples each time
    settings.load_profile("repeatable")

PROCESSES = (
    *("emulated/", "planning/test_measure", "plugins/transports/", "runtime/cluster/", "runtime/test_devices"),
    *("runtime/test_interruption", "runtime/test_pairs", "runtime/test_slice_processes", "runtime/test_torchrun"),
)
"""Tests that start processes or wait for seconds: one after the other, beside tests that do not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(PROCESSES):
            item.add_marker(pytest.mark.xdist_group("processes"))


class Calls(dict[str, int]):
    """Calls of, and tokens through, the layers of a transformers model: ``calls`` and ``tokens``."""

    def reset(self) -> None:
        self.update(calls=0, tokens=0)


@pytest.fixture
def count_layers() -> Callable[[Any], Calls]:
    """Counts what runs through the layers of a live model from now on, with hooks on its modules."""

    def count(model: Any) -> Calls:
        calls = Calls(calls=0, tokens=0)

        def note(module: Any, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            calls["calls"] += 1
            calls["tokens"] += hidden.shape[0] * hidden.shape[1]

        names = ("BertLayer", "GPT2Block", "LlamaDecoderLayer", "T5Block", "BartEncoderLayer", "BartDecoderLayer")
        for module in model.modules():
            if type(module).__name__ in names:
                module.register_forward_pre_hook(note, with_kwargs=True)
        return calls

    return count


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny checkpoint of a family, with a tokenizer."""
    from pac_core.testing.tiny import save_tiny

    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp("models") / family, family)
        return made[family]

    return of
