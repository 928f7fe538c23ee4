"""Configuration: YAML and settings in, one validated tree out, errors of one line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pac_core.config import RunConfig, parse_setting
from pac_core.errors import BadInput

LEAST = {"model": "m", "train": "t.jsonl"}


def refusal(tree: dict[str, Any], **overrides: Any) -> str:
    with pytest.raises(BadInput) as refused:
        RunConfig.build({**LEAST, **tree}, {k.replace("__", "."): v for k, v in overrides.items()})
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_model_and_training_data_are_enough() -> None:
    config = RunConfig.build(LEAST)
    assert (config.epochs, config.cache.store, config.adapter.name) == (3, "disk", "parallel")


def test_the_tree_survives_its_plain_form() -> None:
    config = RunConfig.build(LEAST, {"cache.dir": "/tmp/x", "adapter.options": {"a": 1}, "optimizer.lr": 0.1})
    assert RunConfig.build(config.plain()) == config


def test_the_tree_is_frozen() -> None:
    config = RunConfig.build(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 5


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"epoch": 3}, "'epoch' is not a key of the configuration; did you mean 'epochs'?"),
        ({"cache": {"sotre": "disk"}}, "'cache.sotre' is not a key of the configuration; did you mean 'store'?"),
        ({"adapter": {"reduktion": 8}}, "did you mean 'reduction'?"),
        ({"generation": {"zzz": 1}}, "keys here: eval_samples, max_new_tokens, temperature, top_p"),
    ],
    ids=str,
)
def test_an_unknown_key_brings_the_nearest(tree: dict[str, Any], told: str) -> None:
    assert told in refusal(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", "many"),
        ("epochs", None),
        ("batch_size", 1.5),
        ("optimizer.lr", -1),
        ("optimizer.warmup", 1),
        ("cache.dtype", "float16"),
        ("cache.when_full", "explode"),
        ("adapter.dropout", 1.0),
        ("adapter", 3),
        ("cache", "disk"),
        ("task", "summarise"),
        ("generation.top_p", 0),
        ("columns", ["text"]),
        ("output", "runs/\udcff"),
        ("cache.dir", "\udcff"),
    ],
)
def test_a_bad_value_is_named_with_its_key(key: str, value: Any) -> None:
    told = refusal({}, **{key.replace(".", "__"): value})
    assert told.startswith(f"{key} = {value!r}: ")


def test_what_is_missing_is_named_with_its_flag() -> None:
    with pytest.raises(BadInput, match=r"'train' is not set; .* --train"):
        RunConfig.build({"model": "m"})


def test_a_setting_below_a_value_is_refused() -> None:
    assert "'epochs' holds a value" in refusal({"epochs": 3}, epochs__x=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cache.dtype=float32", ("cache.dtype", "float32")),
        ("epochs=3", ("epochs", 3)),
        ("optimizer.lr=1e-3", ("optimizer.lr", "1e-3")),
        ("optimizer.max_grad_norm=null", ("optimizer.max_grad_norm", None)),
        ("columns={text: body, label: class}", ("columns", {"text": "body", "label": "class"})),
        ("resume=true", ("resume", True)),
        ("model=a=b", ("model", "a=b")),
    ],
)
def test_settings_are_read_as_yaml(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["epochs", "=3", "columns={text: "])
def test_a_setting_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--set") as refused:
        parse_setting(text)
    assert "\n" not in str(refused.value)


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert RunConfig.build(LEAST, dict([parse_setting("optimizer.lr=1e-3")])).optimizer.lr == 1e-3


# Files.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def load_refusal(file: Path) -> str:
    with pytest.raises(BadInput) as refused:
        RunConfig.load(file)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_settings_override_the_file(file: Path) -> None:
    file.write_text("model: m\ntrain: t.csv\ncache: {store: memory, dtype: int8}\n")
    config = RunConfig.load(file, {"cache.store": "lz4+disk", "epochs": 9})
    assert (config.cache.store, config.cache.dtype, config.epochs) == ("lz4+disk", "int8", 9)


@pytest.mark.parametrize(
    ("text", "line"), [("model: m\ntrain: [\n", 3), ("a: b: c\n", 1), ("model: 'm\n\n", 3), ("x: 1\n\ty: 2\n", 2)]
)
def test_what_is_not_yaml_is_named_with_its_line(file: Path, text: str, line: int) -> None:
    file.write_text(text)
    assert load_refusal(file).startswith(f"{file}:{line}: not valid YAML")


def test_keys_and_values_of_a_file_are_named_with_it(file: Path) -> None:
    file.write_text("model: m\ntrain: t\nepohcs: 1\n")
    assert load_refusal(file).startswith(f"{file}:3: 'epohcs' is not a key")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "5\n"])
def test_a_file_that_is_no_mapping_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    assert "must be a mapping" in load_refusal(file)


def test_files_that_cannot_be_read_are_refused(file: Path, tmp_path: Path) -> None:
    assert "no such file" in load_refusal(file)
    file.write_bytes(b"model: \xff\xfe\n")
    assert "cannot be read" in load_refusal(file)
    assert "cannot be read" in load_refusal(tmp_path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v, max_size=2)))
@settings(max_examples=25, deadline=None)
def test_any_value_gives_a_configuration_or_one_line(value: Any) -> None:
    for key in ("epochs", "cache.dir", "columns", "adapter", "optimizer.lr"):
        assert "\n" not in told(key, value)


def told(key: str, value: Any) -> str:
    try:
        return str(RunConfig.build(LEAST, {key: value}).epochs)
    except BadInput as error:
        return str(error)
