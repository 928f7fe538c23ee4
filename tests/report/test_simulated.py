"""Pictures and pages of what the simulator found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pac_core.contracts.cluster import Job, Profile
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.errors import BadInput
from pac_core.planning.scaling import Scaled
from pac_core.planning.simulate import Timeline, Work, simulate
from pac_core.report.simulated import write_rates, write_timeline
from pac_core.testing.scheduler import JOB, LAYER, MIB, a_cluster

SVG = "{http://www.w3.org/2000/svg}"

NAMES = ('d<0>"&', "d1", "d2")


def a_timeline(prefill: bool = False, memory_mib: int = 4096) -> Timeline:
    plan = Plan(
        (
            StagePlan({"one": (0, 2)}, NAMES[:2], (2, 4)),
            StagePlan({"one": (2, 4)}, NAMES[2:], (6,)),
        ),
        4,
    )
    profile = Profile({"one": (replace(LAYER, gradient_bytes=MIB),) * 4}, {})
    cluster = a_cluster(1.0, 1.0, 1.0, memory_bytes=memory_mib * MIB)
    devices = tuple(replace(device, name=name) for device, name in zip(cluster.devices, NAMES))
    return simulate(plan, profile, replace(cluster, devices=devices), JOB, Work(100, 3, prefill=prefill))


def boxes(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("class") == kind]


def test_a_picture_shows_what_devices_do_and_their_memory_below(tmp_path: Path) -> None:
    found = a_timeline()
    write_timeline(tmp_path / "run.svg", found)
    root = ElementTree.parse(tmp_path / "run.svg").getroot()
    assert root.tag == f"{SVG}svg"
    count = sum(span.kind == "forward" for span in (*found.spans, *found.cached_spans))
    assert len(boxes(root, "box forward")) == count + 1  # and one that explains the colour
    assert len(boxes(root, "memory")) == len(boxes(root, "budget")) == 3
    assert f"{NAMES[0]}: backward 3" in "".join(root.itertext())
    assert "from the cache" in "".join(root.itertext())


def test_memory_is_drawn_to_scale(tmp_path: Path) -> None:
    found = a_timeline(memory_mib=10)
    assert found.out_of_memory
    write_timeline(tmp_path / "run.svg", found)
    root = ElementTree.parse(tmp_path / "run.svg").getroot()
    for curve, line, memory in zip(boxes(root, "memory"), boxes(root, "budget"), found.memory, strict=True):
        ups = [float(place.split(",")[1]) for place in str(curve.get("points")).split()]
        bottom = ups[0]
        peak = max(level for _, level in memory.steps)
        assert (bottom - float(str(line.get("y1")))) / (bottom - min(ups)) == pytest.approx(
            memory.budget / peak, rel=0.02
        )
        assert bottom == max(ups)


def test_a_picture_needs_nothing_else(tmp_path: Path) -> None:
    write_timeline(tmp_path / "run.svg", a_timeline(prefill=True))
    text = (tmp_path / "run.svg").read_text(encoding="utf-8")
    assert "var(" not in text  # few programs but browsers know variables
    assert ".forward { fill: #0067a5; }" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text


def test_a_page_has_figures_and_tables(tmp_path: Path) -> None:
    write_timeline(tmp_path / "run.html", a_timeline())
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    for part in (
        "Simulated run",
        "<td>fill</td>",
        "<td>spread</td>",
        "<td>cached</td>",
        "3 devices",
        "Made by the scheduler",
    ):
        assert part in text
    assert "d&lt;0&gt;&#34;&amp;" in text
    assert "d<0>" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_devices_that_lack_memory_are_named(tmp_path: Path) -> None:
    write_timeline(tmp_path / "run.html", a_timeline(memory_mib=10))
    assert "<dd>no<small>d&lt;0" in (tmp_path / "run.html").read_text(encoding="utf-8")


def rates() -> list[Scaled]:
    work = Work(100, 3)
    return [Scaled(1, "pac", work, None, "too small"), *(Scaled(n, "pac", work, a_timeline()) for n in (2, 3, 4))]


def test_throughput_is_a_curve_of_those_that_fit(tmp_path: Path) -> None:
    write_rates(tmp_path / "rates.svg", rates())
    root = ElementTree.parse(tmp_path / "rates.svg").getroot()
    assert [len(boxes(root, f"dot c{i}")) for i in (0, 1)] == [3, 3]
    assert {"first pass", "from the cache", "devices"} <= {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
    write_rates(tmp_path / "rates.html", rates())
    text = (tmp_path / "rates.html").read_text(encoding="utf-8")
    assert "does not fit" in text
    assert f"{rates()[1].first_rate:.2f}" in text


@pytest.mark.parametrize("name", ["run.png", "run", "run.SVG"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    for write in (lambda path: write_timeline(path, a_timeline()), lambda path: write_rates(path, rates())):
        refuses(write, tmp_path / name)


def refuses(write: Callable[[Path], None], path: Path) -> None:
    with pytest.raises(BadInput, match=r"is not known; name it \.svg for a picture or \.html for a page"):
        write(path)
    assert not path.exists()


def test_nothing_that_fits_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing fits: too small"):
        write_rates(tmp_path / "rates.svg", rates()[:1])


def test_a_run_without_cached_epochs_is_drawn_too(tmp_path: Path) -> None:
    plan = Plan((StagePlan({"one": (0, 4)}, ("d0",), (6,)),), 4)
    profile = Profile({"one": (LAYER,) * 4}, {})
    found = simulate(plan, profile, a_cluster(1.0), Job(24, 6, 30.0, 64), Work(100))
    write_timeline(tmp_path / "run.svg", found)
    assert "from the cache" not in (tmp_path / "run.svg").read_text(encoding="utf-8")
