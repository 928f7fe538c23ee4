"""From the content of a report to its HTML, through a template that escapes everything it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from pac_core.files import write_atomically
from pac_core.report.content import Content
from pac_core.report.sections import Section, sections
from pac_core.report.svg import printable
from pac_core.report.words import amount, count, score, size, span_of_time

FOLDER = resources.files("pac_core.report")


@dataclass(frozen=True)
class Tile:
    """A figure of the headline."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What the template is filled with."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    footer: str


def write(path: Path, content: Content) -> None:
    """Write the report, atomically.

    Raises:
        RunFailed: the file cannot be written.
    """
    write_page(path, render(content))


def write_page(path: Path, text: str) -> None:
    """Write a page or a picture, atomically; errors as in `write`."""

    def fill(place: Path) -> None:
        place.write_text(text, encoding="utf-8")

    write_atomically(path, fill)


def render(content: Content) -> str:
    """The report as one HTML page, which loads nothing from elsewhere and runs no script."""
    return html(page(content))


def html(shown: Page) -> str:
    """A page as text."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_cleaned)
    template = environment.from_string((FOLDER / "page.html.j2").read_text("utf-8"))
    return template.render(page=shown, style=Markup(style()))


def style() -> str:
    """The style sheet of pages and pictures."""
    return (FOLDER / "style.css").read_text("utf-8")


def page(content: Content) -> Page:
    """The report in words and pictures."""
    model = str(content.config["model"]).rstrip("/").rsplit("/", 1)[-1]
    versions = ", ".join(f"{name} {version}" for name, version in content.metrics["versions"].items())
    return Page(
        title=f"{model}: {content.task}",
        subtitle=_subtitle(content),
        tiles=tuple(_tiles(content)),
        sections=tuple(sections(content)),
        footer=f"Written by pac. {versions}.",
    )


def _subtitle(content: Content) -> str:
    adapter = content.config["adapter"]
    named = f"{content.config['train']}; adapter {adapter['name']}, reduction {adapter['reduction']}."
    if content.metrics.get("emulated"):
        return f"Emulated devices: they waited instead of computing, and nothing was learnt. Run over {named}"
    return f"Trained on {named}"


def _cleaned(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _tiles(content: Content) -> Iterable[Tile]:
    metrics = content.metrics
    before = metrics["eval_before"]
    for name in [name for name in metrics["eval"] if name != "loss"][:2] or list(metrics["eval"])[:1]:
        note = f"{score(before[name])} before training" if name in before else ""
        yield Tile(name, score(metrics["eval"][name]), note)
    held = f"{count(content.eval_samples, 'sample')} to evaluate" if content.eval_samples else "none to evaluate"
    yield Tile("training data", count(content.train_samples, "sample"), held)
    seconds = sum(phase.seconds for phase in content.phases)
    epochs = len(metrics["epochs"])
    yield Tile("time", span_of_time(seconds), f"{count(epochs, 'epoch')}, {count(len(metrics['devices']), 'device')}")
    yield Tile("trainable parameters", amount(metrics["trainable_params"]))
    yield Tile("peak memory", size(metrics["peak_rss_bytes"]), "of the leading process")
