"""A report in headless Chromium: it fits a phone and is readable in both modes."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pac_core.report import Outcome, render

MEASURE = """
<iframe id="page" style="width:390px;height:844px;border:0" srcdoc="{}"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const inside = document.getElementById("page").contentDocument, root = inside.documentElement;
  const blocked = (element) => element.closest(".wide") !== null;
  const wide = [...inside.querySelectorAll("body *")].filter(
    (element) => !blocked(element) && element.getBoundingClientRect().right > 390.5
  );
  const text = [...inside.querySelectorAll("svg.chart text")].map((element) => element.getBoundingClientRect().height);
  document.getElementById("found").textContent = JSON.stringify({{
    client: root.clientWidth, scroll: root.scrollWidth, wide: wide.map((element) => element.tagName),
    scrolls: [...inside.querySelectorAll(".wide")].some((element) => element.scrollWidth > element.clientWidth),
    smallest: Math.min(...text), title: inside.title, details: inside.querySelectorAll("details").length,
  }});
}});
</script>
"""

LONG = "a-very-long-word-without-any-break-" * 8


@pytest.fixture
def measure(browse: Callable[[Path], str], tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """What a page looks like in a window of 390 pixels; its details can be opened first."""

    def of(page: str) -> dict[str, Any]:
        file = tmp_path / "measure.html"
        file.write_text(MEASURE.format(html.escape(page)), encoding="utf-8")
        found = re.search(r'<pre id="found">(.+?)</pre>', browse(file), re.DOTALL)
        assert found is not None
        measured: dict[str, Any] = json.loads(html.unescape(found[1]))
        return measured

    return of


@pytest.mark.parametrize("opened", [False, True])
def test_it_fits_a_phone(content: Any, measure: Any, opened: bool) -> None:
    """Nothing but the timeline and wide tables is wider than the window, and those scroll by themselves."""
    outcomes = (Outcome(LONG, LONG, LONG, False), Outcome("short", "a", "a", True))
    text = render(content(outcomes=outcomes, config={**content().config, "train": LONG}))
    found = measure(text.replace("<details>", "<details open>") if opened else text)
    assert found["title"] == "minilm: classification"
    assert found["client"] == 390
    assert found["scroll"] <= 390
    assert found["wide"] == []
    assert found["scrolls"]
    assert found["smallest"] >= 10
    assert found["details"] == 6


def test_a_table_that_does_not_scroll_would_be_noticed(content: Any, measure: Any) -> None:
    found = measure(render(content()).replace(".wide { overflow-x: auto; }", ""))
    assert found["scroll"] > 390


def test_nothing_is_loaded_or_run(content: Any, browse: Any, tmp_path: Path) -> None:
    """Even where a script has got into the page, its policy keeps it from running."""
    file = tmp_path / "report.html"
    file.write_text(render(content()).replace("</main>", "<script>document.title = 'ran'</script></main>"))
    shown = browse(file)
    assert "<title>minilm: classification</title>" in shown


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_page(content: Any, mode: int) -> None:
    """4.5 to 1 for text, 3 to 1 for lines and boxes, as WCAG asks."""
    block = re.findall(r":root \{(.*?)\}", render(content()), re.DOTALL)[mode]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    for name in ("text", "quiet", "good", "bad"):
        assert contrast(colours[name], colours["panel"]) >= 4.5, name
    for name in (f"c{i}" for i in range(6)):
        assert contrast(colours[name], colours["panel"]) >= 3, name
    for name in ("c0", "c1"):
        assert contrast(colours[name], colours["inside"]) >= 4.5, name
