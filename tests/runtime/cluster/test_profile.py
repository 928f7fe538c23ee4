"""Workers that have not got the model are measured, with the links between all devices."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from pac_core.planning.profile_file import read_profile
from pac_core.testing.tiny import tiny_model


def test_two_workers_are_measured_with_the_links_between_all(home: Any, tmp_path: Path) -> None:
    hands = [home.hand("kitchen", once=True), home.hand("garage", once=True)]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(tiny_model("t5").config.to_json_string(use_diff=False))
    file = home.file(devices=[{"name": "kitchen", "memory": "2GB"}, {"name": "garage", "threads": 1}, {"name": "desk"}])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pac_core.cli", "profile", "--model", "model", "--cluster", str(file), "--json"),
            *("--reduction", "4", "--max-length", "32", "--seconds", "1", "--cache-dir", "cache"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "saved to profile.json" in done.stderr
    for hand in hands:
        hand.ends()
        assert hand.failed is None
    found = read_profile(tmp_path / "profile.json")
    assert json.loads(done.stdout) == json.loads(json.dumps(found.to_json()))
    assert [device.name for device in found.cluster.devices] == ["desk", "kitchen", "garage"]
    assert found.cluster.devices[1].memory_bytes == 2 * 10**9
    assert list(found.cluster.links) == list(combinations(["desk", "kitchen", "garage"], 2))
    assert list(found.profile.layers) == ["encoder", "decoder"]
    assert all(fits for fits in found.fits.values())
