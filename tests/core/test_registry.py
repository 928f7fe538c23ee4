"""Discovery of plugins, from distributions that lie in a folder on the path."""

import ast
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pac_core.errors import BadInput, PluginConflict, UnknownPlugin
from pac_core.events import Event
from pac_core.hookspecs import PROJECT
from pac_core.registry import BLOCK_VARIABLE, KINDS, Registry

STORE = """
from pac_core.hookspecs import hookimpl

@hookimpl
def pac_register_stores(register):
    register({name!r}, dict, summary="a dictionary")
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a distribution with one plugin module in a folder that is on ``sys.path``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(distribution: str, code: str, *, plugin: str | None = None, version: str = "1.0") -> None:
        module = distribution.replace("-", "_") + "_plugin"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{PROJECT}]\n{plugin or distribution} = {module}\n")
        sys.modules.pop(module, None)

    return make


def test_a_strangers_plugin_is_found_beside_the_bundled_ones(install: Install) -> None:
    install("pac-dict", STORE.format(name="dict"), version="2.5")
    registry = Registry()
    assert registry.get("stores", "dict") is dict
    (entry,) = [r for r in registry.listing("stores") if r.name == "dict"]
    assert (entry.distribution, entry.version, entry.summary) == ("pac-dict", "2.5", "a dictionary")
    assert "disk" in registry.names("stores")
    assert registry.broken == []


def test_bundled_plugins_come_through_the_same_door() -> None:
    registry = Registry()
    assert {r.distribution for r in registry.listing() if r.name in ("parallel", "disk", "bert")} == {"pac-core"}
    assert Registry([]).listing() == []
    kinds = [r.kind for r in registry.listing()]
    assert kinds == sorted(kinds, key=KINDS.index)


def test_plugins_are_blocked_by_argument(install: Install) -> None:
    install("pac-dict", STORE.format(name="dict"))
    registry = Registry(blocked=["pac-dict"])
    assert "dict" not in registry.names("stores")
    with pytest.raises(UnknownPlugin, match="blocked: pac-dict"):
        registry.get("stores", "dict")


def test_plugins_are_blocked_by_the_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("pac-dict", STORE.format(name="dict"))
    monkeypatch.setenv(BLOCK_VARIABLE, "pac-adapters,pac-dict")
    registry = Registry()
    assert registry.names("adapters") == []
    assert "dict" not in registry.names("stores")
    assert "disk" in registry.names("stores")


def test_blocking_comes_before_loading(install: Install) -> None:
    install("pac-boom", "raise SystemExit('loaded')")
    assert "disk" in Registry(blocked=["pac-boom"]).names("stores")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        (
            "from pac_core.hookspecs import hookimpl\n@hookimpl\ndef pac_register_storse(register): pass",
            "pac_register_storse",
        ),
        (
            "from pac_core.hookspecs import hookimpl\n@hookimpl\ndef pac_register_stores(register): {}['x']",
            "KeyError",
        ),
    ],
    ids=["import", "error", "misspelt hook", "failing hook"],
)
def test_a_broken_plugin_is_set_aside_and_reported(install: Install, code: str, error: str) -> None:
    install("pac-bad", code, version="0.3")
    install("pac-dict", STORE.format(name="dict"))
    registry = Registry()
    (broken,) = registry.broken
    assert (broken.entry_point, broken.distribution, broken.version) == ("pac-bad", "pac-bad", "0.3")
    assert error in broken.error
    assert {"dict", "disk"} <= set(registry.names("stores"))
    with pytest.raises(UnknownPlugin, match=r"plugin 'pac-bad' of pac-bad 0\.3 failed to load"):
        registry.get("stores", "pac-bad")


def test_a_hook_that_fails_half_way_registers_nothing(install: Install) -> None:
    install("pac-half", STORE.format(name="half") + "    raise ValueError('late')\n")
    assert "half" not in Registry().names("stores")


def test_two_plugins_with_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("pac-one", STORE.format(name="mine"), version="1.1")
    install("pac-two", STORE.format(name="mine"), version="2.2")
    with pytest.raises(PluginConflict, match=r"store 'mine': pac-one 1\.1 and pac-two 2\.2"):
        Registry()
    assert "mine" in Registry(blocked=["pac-one"]).names("stores")


def test_a_plugin_may_not_take_a_bundled_name(install: Install) -> None:
    install("pac-thief", STORE.format(name="disk"))
    with pytest.raises(PluginConflict, match=r"pac-core .* and pac-thief"):
        Registry()


def test_an_unknown_name_brings_the_nearest_and_all_names() -> None:
    with pytest.raises(UnknownPlugin) as unknown:
        Registry().get("stores", "dsk")
    told = str(unknown.value)
    assert "store 'dsk' is not known; did you mean 'disk'?" in told
    assert "installed: disk, lz4, memory" in told
    assert "\n" not in told
    assert isinstance(unknown.value, BadInput)


def test_an_unknown_name_that_an_extra_brings_says_what_to_install() -> None:
    with pytest.raises(UnknownPlugin, match=r'pip install "pac-core\[lz4\]"'):
        Registry([]).get("stores", "lz4")


def test_entry_points_can_be_handed_in() -> None:
    points = [metadata.EntryPoint("stores", "pac_plugins.stores", PROJECT)]
    registry = Registry(points)
    assert registry.names("stores") == ["disk", "lz4", "memory"]
    assert registry.names("adapters") == []


def test_an_observer_hook_that_fails_is_left_out_from_then_on(install: Install, caplog: Any) -> None:
    start = "from pac_core.hookspecs import hookimpl\nseen = []\n"
    code = start + "@hookimpl\ndef pac_observe(event):\n    seen.append(event)\n"
    install("pac-watch", code)
    install("pac-fail", code + "    raise ValueError('no')\n")
    registry = Registry()
    for _ in range(3):
        registry.tell(Event())
    assert len(sys.modules["pac_watch_plugin"].seen) == 3
    assert len(sys.modules["pac_fail_plugin"].seen) == 1
    assert caplog.text.count("pac-fail failed and is left out") == 1


# Every bundled plugin is tested by its suite.


def suite_classes(folder: Path, suite: str) -> list[ast.ClassDef]:
    """Classes in the test modules below ``folder`` that subclass the named suite."""
    found = []
    for file in folder.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any(suite in ast.unparse(base) for base in node.bases):
                found.append(node)
    return found


def strings(node: ast.AST) -> str:
    return "\n".join(n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


@pytest.mark.parametrize(("kind", "suite"), [("adapters", "AdapterSuite"), ("stores", "StoreSuite")])
def test_every_bundled_plugin_has_a_conformance_class(kind: str, suite: str) -> None:
    classes = suite_classes(Path(__file__).parents[1] / "plugins" / kind, suite)
    told = "\n".join(map(strings, classes))
    bundled = [r.name for r in Registry().listing(kind) if r.distribution == "pac-core"]
    assert bundled
    assert [name for name in bundled if name not in told] == []


def test_every_bundled_family_has_a_conformance_class() -> None:
    import transformers as hf

    classes = suite_classes(Path(__file__).parents[1] / "plugins" / "backbones", "BackboneSuite")
    code = "\n".join(map(ast.unparse, classes))
    tested = {
        getattr(hf, name).model_type
        for name in dir(hf)
        if name.endswith("Config") and f"hf.{name}(" in code and hasattr(getattr(hf, name), "model_type")
    }
    bundled = {r.name for r in Registry().listing("backbones") if r.distribution == "pac-core"}
    assert bundled - tested == set()
