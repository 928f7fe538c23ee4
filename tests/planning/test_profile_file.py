"""profile.json: what is written is read again, and what is damaged is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from pac_core.contracts.backbone import ENCODER
from pac_core.contracts.cluster import Cluster, DeviceProfile, Job, Link, Pace, Paces, Profile, StreamPaces
from pac_core.errors import BadInput
from pac_core.planning.profile_file import FittedPass, Point, ProfileFile, read_profile, versions_here, write_profile
from pac_core.testing.scheduler import LAYER

PACE = Pace(3e9, 1e-4)
PACES = Paces((StreamPaces(ENCODER, PACE, PACE, Pace(1e9), PACE),), PACE, PACE)
DEVICES = (
    DeviceProfile("one", 3e9, 1 << 30, disk_bytes_per_s=1e8, write_bytes_per_s=2e8, paces=PACES),
    DeviceProfile("two", 3e9, 1 << 30),
)
FOUND = ProfileFile(
    model="models/it",
    profile=Profile({ENCODER: (LAYER, LAYER)}, {ENCODER: 1 << 20}, head_flops=5.0),
    cluster=Cluster(DEVICES, {("one", "two"): Link(1e8, 1e-3)}, shared=True),
    job=Job(16, None, 40.5, 64, lengths={ENCODER: 40.5}),
    fits={"one": (FittedPass(ENCODER, "backbone", 0.02, 0.1, (Point(4, 64, 0.003),)),)},
    versions=versions_here(),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_profile(tmp_path / "profile.json", FOUND)
    assert read_profile(tmp_path / "profile.json") == FOUND


def damaged(tmp_path: Path, *keys: Any, value: Any) -> Path:
    """The file with the value at ``keys`` replaced; removed where ``value`` is ``...``."""
    tree = json.loads(json.dumps(FOUND.to_json()))
    *path, last = keys
    place = tree
    for key in path:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(tree))
    return file


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("schema",), 2, "schema 2 is not known"),
        (("model",), ..., "model: field required"),
        (("more",), 1, "more: "),
        (("devices",), [], "devices: "),
        (("devices", 0, "flops"), 0, "devices.0.flops: "),
        (("devices", 0, "memory_bytes"), "much", "devices.0.memory_bytes: "),
        (("devices", 0, "paces", "head_forward", "flops"), float("nan"), "devices.0.paces.head_forward.flops: "),
        (("devices", 0, "paces", "streams", 0, "stream"), "decoder", "stream 'encoder' was not measured"),
        (("devices", 1, "name"), "one", "'one' is there twice"),
        (("links", 0, "between"), ["one", "three"], "no device 'three'"),
        (("links", 0, "bits_per_second"), -1.0, "links.0.bits_per_second: "),
        (("profile", "layers"), {}, "profile.layers: "),
        (("profile", "layers", "encoder", 1, "kept_bytes"), 1.5, "profile.layers.encoder.1.kept_bytes: "),
        (("job", "batch_size"), 0, "job.batch_size: "),
        (("fits", "one", 0, "points", 0, "rows"), None, "fits.one.0.points.0.rows: "),
    ],
)
def test_a_damaged_field_is_named_in_one_line(tmp_path: Path, keys: Any, value: Any, named: str) -> None:
    file = damaged(tmp_path, *keys, value=value)
    with pytest.raises(BadInput) as caught:
        read_profile(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert named in text
    assert "\n" not in text
    assert "pac profile" in text


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"schema": 1}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"profile\.json"):
        read_profile(file)
