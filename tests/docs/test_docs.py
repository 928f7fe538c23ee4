"""What the documentation shows works: Python runs, commands parse, links lead somewhere, nothing is left out.

All Python blocks of a page share one namespace and one folder, in order, with the names of `make_names` and the files
of `make_files`. A fence that says ``python no-run`` is not run.
"""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import typer

from pac_core.cli.app import build
from pac_core.contracts.adapter import AdapterConfig, SideNetwork
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.hookspecs import hookspec
from pac_core.registry import KINDS, Registry
from pac_core.testing import AdapterSuite

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *kinds: str) -> list[str]:
    """Contents of a page's fences of these kinds, in order."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind.strip() in kinds]


def runnable(page: Path) -> list[str]:
    """The Python blocks of a page that are to run."""
    return blocks(page, "python")


# Python


def make_names() -> dict[str, Any]:
    """What blocks may use without making it: tiny models and what a user would have at hand."""
    from transformers import DataCollatorWithPadding

    from pac_core.backbones import load_backbone
    from pac_core.testing.tiny import tiny_model, tiny_tokenizer

    tokenizer, base = tiny_tokenizer(), tiny_model("bert")
    backbone = load_backbone(BackboneSource(model=base), Registry())
    backbone.info = replace(backbone.info, max_tokens=128)  # pages cut texts there, which no text here comes near
    rows = [{"input_ids": [1, 6 + i, 9, 12 + i], "attention_mask": [1] * 4, "labels": i % 3} for i in range(8)]
    collator = DataCollatorWithPadding(tokenizer)
    loader = [{name: values.clone() for name, values in collator(rows[i : i + 4]).items()} for i in (0, 4)]
    return {
        "__name__": "docs",
        "base_model": base,
        "language_model": tiny_model("gpt2"),
        "backbone": backbone,
        "tokenizer": tokenizer,
        "dataset": rows,
        "collator": collator,
        "loader": loader,
        "input_ids": loader[0]["input_ids"],
        "attention_mask": loader[0]["attention_mask"],
        "prompt_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]),
        "model_path": "my-model",
    }


def make_files(folder: Path) -> None:
    """Data files, a configuration and a model, by the names that the pages use."""
    from pac_core.testing.tiny import save_tiny

    save_tiny(folder / "my-model", "bert")
    lines = "".join(f"the film was {word} {i}\t{label}\n" for i in "abcd" for word, label in (("good", 1), ("bad", 0)))
    for name in ("reviews.tsv", "held-out.tsv"):
        (folder / name).write_text(f"text\tlabel\n{lines}")
    (folder / "reviews.csv").write_text("review,stars\n" + lines.replace("\t", ","))
    (folder / "run.yaml").write_text("model: ./my-model\ntrain: reviews.tsv\n")


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAC_CACHE_DIR", str(tmp_path / "caches"))
    if any("Trainer" in block for block in runnable(page)):
        pytest.importorskip("accelerate")
    make_files(tmp_path)
    torch.manual_seed(0)
    names = make_names()
    for number, block in enumerate(runnable(page), start=1):
        exec(compile(block, f"{name_of(page)}, Python block {number}", "exec"), names)


class TestTheWorkedAdapter(AdapterSuite):
    """The adapter of docs/plugins/adapters.md passes the suite."""

    adapter = "linear"
    targets: ClassVar[tuple[tuple[str, str], ...]] = (("bert", ENCODER), ("t5", DECODER))

    def make(self, backbone: Backbone, config: AdapterConfig, target: str) -> SideNetwork:
        network: SideNetwork = worked()["LinearSideNetwork"](backbone.info, config, target)
        return network


@cache
def worked() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "my_package"}
    for block in runnable(ROOT / "docs/plugins/adapters.md"):
        exec(block, names)
    return names


# commands


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every ``pac`` command in a page's shell blocks."""
    for block in blocks(page, "bash", "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
            words.whitespace_split = True
            found: list[str] = []
            for word in [*words, ";"]:
                if set(word) <= set("|&;"):
                    if found[:1] == ["pac"]:
                        yield found[1:]
                    found = []
                else:
                    found.append(word)


def parse(command: Any, arguments: list[str], name: str = "pac") -> None:
    """Parse a command line as ``pac`` would, without running it."""
    if hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"{name} has no command {arguments[0]}"
        parse(command.commands[arguments[0]], arguments[1:], f"{name} {arguments[0]}")
    else:
        command.make_context(name, list(arguments))


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=name_of)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    app = typer.main.get_command(build())
    for arguments in commands(page):
        try:
            parse(app, arguments)
        except Exception as error:
            pytest.fail(f"pac {shlex.join(arguments)}: {error}")


def test_every_command_is_in_the_manual() -> None:
    manual = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    app: Any = typer.main.get_command(build())
    for name, command in app.commands.items():
        assert f"## pac {name}\n" in manual
        for inner in getattr(command, "commands", {}):
            assert f"`pac {name} {inner}`" in manual


# links


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if "docs" in page.relative_to(ROOT).parts]
    assert [page for page in pages if page != "index.md" and f"]({page})" not in index] == []


# nothing is left out


def test_every_hook_and_every_bundled_plugin_is_named() -> None:
    import pac_core.hookspecs

    page = (ROOT / "docs/plugins/index.md").read_text(encoding="utf-8")
    marker = f"{hookspec.project_name}_spec"
    hooks = [name for name, value in vars(pac_core.hookspecs).items() if hasattr(value, marker)]
    assert len(hooks) == len(KINDS) + 1
    bundled = [entry.name for entry in Registry().listing() if entry.distribution == "pac-core"]
    assert bundled
    assert [name for name in [*hooks, *bundled] if f"`{name}`" not in page] == []


def loaded(name: str) -> Any:
    """A script of ``docs``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    return builder


def test_the_tables_of_the_configuration_are_up_to_date() -> None:
    builder = loaded("build_configuration")
    page = builder.PAGE.read_text(encoding="utf-8")
    assert builder.updated(page) == page, "run: python docs/build_configuration.py"


def test_every_dependency_is_explained() -> None:
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = {k: v for k, v in project["project"]["optional-dependencies"].items() if k != "all"}
    needed = [*project["project"]["dependencies"], *(n for names in extras.values() for n in names)]
    packages = [re.split(r"[<>=\[]", requirement)[0] for requirement in needed]
    assert [name for name in packages if not re.search(rf"\b{re.escape(name)}\b", page)] == []
    assert [name for name in extras if f"| `{name}` |" not in page] == []


def test_the_reproduction_of_the_paper_is_up_to_date() -> None:
    builder = loaded("build_reproduction")
    page = builder.PAGE.read_text(encoding="utf-8")
    assert builder.updated(page) == page, "run: python docs/build_reproduction.py"
