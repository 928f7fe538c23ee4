"""A run of two devices over one transport with one store: ``tox run -e zmq-lz4`` and its like."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

STORES = {"memory": "memory", "disk": "disk", "lz4": "lz4+disk"}
EXACT = {"dtype": "float64", "cache__dtype": "float64", "adapter__dropout": 0.0}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]

PAIR = os.environ.get("PAC_PAIR", "")
"""Names of a transport and a store, as in zmq-lz4."""


@pytest.mark.skipif(not PAIR, reason="PAC_PAIR names no transport and store; tox has an environment for each pair")
def test_a_pair_ends_with_the_weights_of_one_device(
    run: Any, config: Any, weights: Any, texts: Any, tmp_path: Path, place: Path, no_dropout: None
) -> None:
    transport, _, store = PAIR.partition("-")
    one = run(texts(25), **EXACT, output=tmp_path / "one", cache__dir=tmp_path / "one-cache")
    pair = {**EXACT, "transport": transport, "cache__store": STORES[store]}
    if transport == "torch":
        tree = config(texts(25), **pair).plain()
        del tree["devices"]
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
        command = [*TORCHRUN, "pac_core.cli", "finetune", str(tmp_path / "run.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        run(texts(25), **pair, devices=2)
    found = weights(tmp_path / "output")
    for name, expected in weights(one).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9, msg=name)
    assert list(place.glob("pac-*")) == []
