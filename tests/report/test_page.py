"""What a report shows, that it needs nothing else, and that what is foreign stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.report import Content, Outcome, render
from pac_core.spans import Span, working_seconds

HOSTILE = "</td><script>alert(1)</script>\x00\x1b[2J <img src=x onerror=alert(2)> \" ' & \ud800 {{ 7 * 7 }}"

VOID = {"meta", "br", "hr", "img", "link", "input"}


EMPTY = Content(
    config={"model": "m", "train": "t", "adapter": {"name": "parallel", "reduction": 8}},
    metrics={
        "epochs": [],
        "eval": {},
        "eval_before": {},
        "peak_rss_bytes": 1,
        "trainable_params": 1,
        "cache": {"entries": 0, "bytes": 0, "bytes_raw": 0, "damaged": 0},
        "plan": {"scheduler": "single", "stages": []},
        "devices": [{"name": "a", "kind": "cpu", "threads": 1, "samples_filled": 0, "seconds_busy": 0.0}],
        "versions": {},
    },
    task="regression",
    train_samples=1,
    eval_samples=0,
)


class Page(HTMLParser):
    """Tags, attributes and texts of a page; asserts that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data.strip())

    @property
    def shown(self) -> str:
        return " ".join(filter(None, self.texts))


def test_every_section_is_there(content: Any) -> None:
    page = Page(render(content()))
    for text in ("minilm: classification", "0.750", "0.250 before training", "100 samples", "Learning", "Loss",
                 "Scores on the evaluation data", "perplexity on the evaluation data", "loading model and data",
                 "Devices", "desk", "pi", "75%", "By phase", "90%", "Plan", "encoder 2 to 2", "One mini-batch", "Cache",
                 "Predicted wrong", "a good film", "Predicted right", "a bad film", "torch 2.13.0"):  # fmt: skip
        assert text in page.shown, text


def test_it_loads_nothing_and_runs_nothing(content: Any) -> None:
    text = render(content())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "image"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "href", "xlink:href", "srcset"}
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_it_is_made_for_phones_and_both_modes(content: Any) -> None:
    text = render(content())
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<table>") == len(re.findall(r'<div class="wide"[^>]*>\s*<table>', text))


def test_every_picture_has_a_name_and_a_table(content: Any) -> None:
    text = render(content())
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == 6  # loss, scores, perplexity, time, memory, timeline
    for figure in figures:
        assert re.search(r'role="img" aria-label="[^"]+"', figure)
        assert "<table>" in figure


def foreign(text: str, content: Content) -> Content:
    """``content`` with ``text`` wherever text comes from outside."""
    metrics = dict(content.metrics)
    metrics["devices"] = [{**metrics["devices"][0], "name": text, "kind": text}]
    metrics["plan"] = {"scheduler": text, "stages": [{"devices": [text], "layers": {text: [0, 1]}}]}
    metrics["eval"] = {text: 0.5}
    metrics["versions"] = {text: text}
    return replace(
        content,
        config={"model": text, "train": text, "adapter": {"name": text, "reduction": 1}},
        metrics=metrics,
        task=text,
        timeline=(Span(text, "forward", 0, 0.0, 1.0),),
        outcomes=(Outcome(text, text, text, False),),
    )


def test_hostile_text_stays_text(content: Any) -> None:
    text = render(foreign(HOSTILE, content()))
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.shown
    assert "{{ 7 * 7 }}" in page.shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    text.encode("utf-8")


@given(text=st.text(max_size=60))
@settings(deadline=None)
def test_no_text_makes_a_tag(text: str) -> None:
    tags = Page(render(foreign(text, EMPTY))).tags
    assert tags == Page(render(foreign("x", EMPTY))).tags


def test_what_there_is_nothing_to_say_of_is_left_out() -> None:
    shown = Page(render(EMPTY)).shown
    for title in ("Learning", "Time and memory", "One mini-batch", "Examples"):
        assert title not in shown
    assert "none to evaluate" in shown


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=5),
    st.floats(0, 1e3),
    st.floats(0, 1e3),
)
def test_any_values_can_be_drawn(values: list[tuple[float, float]], start: float, seconds: float) -> None:
    epochs = [
        {"epoch": i, "loss": loss, "eval": {"mse": mse}, "cache_hits": 0, "backbone_samples": 0}
        for i, (loss, mse) in enumerate(values, 1)
    ]
    spans = (Span("a", "forward", 0, start, start + seconds), Span("b", "wait", None, start, start))
    text = render(replace(EMPTY, metrics={**EMPTY.metrics, "epochs": epochs}, timeline=spans))
    assert "nan" not in Page(text).shown
    assert "inf" not in "".join(value or "" for _, value in Page(text).attributes)


def test_bubbles_are_what_is_left_of_the_whole(content: Any) -> None:
    """Of two seconds desk computes 1.25, pi 0.75."""
    page = Page(render(content()))
    for row in ("desk 1250.0 ms 750.0 ms 38%", "pi 750.0 ms 1250.0 ms 62%"):
        assert row in page.shown


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_overlapping_spans_count_once(pieces: list[tuple[int, int]]) -> None:
    spans = [Span("a", "forward", None, float(start), float(start + length)) for start, length in pieces]
    covered = {second for start, length in pieces for second in range(start, start + length)}
    assert working_seconds(spans) == len(covered)
