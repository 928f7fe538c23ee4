"""The torch transport under torchrun itself, and without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pac_core.contracts.transport import TransportOptions
from pac_core.errors import BadInput
from pac_plugins.transports import make_torch

PROGRAM = """
import json, sys, torch
from pac_core.contracts.message import Message, Tag
from pac_core.contracts.transport import TransportOptions
from pac_plugins.transports import make_torch

with make_torch(TransportOptions(terms={"model": "abc"})) as t:
    tensor = torch.full((3,), float(t.rank + 1))
    t.all_reduce(tensor)
    following, before = (t.rank + 1) % t.size, (t.rank - 1) % t.size
    sent = t.isend(following, Message(Tag("forward"), {"from": t.rank}, {"x": torch.ones(2, dtype=torch.bfloat16)}))
    message = t.irecv(before, Tag("forward")).wait()
    sent.wait()
    t.barrier()
    found = {"rank": t.rank, "size": t.size, "sum": tensor.tolist(), "from": message.header["from"]}
with open(f"{sys.argv[1]}/{found['rank']}.json", "w") as file:
    json.dump(found, file)
"""


def test_torchrun_starts_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*command, str(program), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"rank": rank, "size": 3, "sum": [6.0] * 3, "from": (rank - 1) % 3}


def test_without_torchrun_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match="torchrun --nproc-per-node") as caught:
        make_torch(TransportOptions())
    assert "\n" not in str(caught.value)
