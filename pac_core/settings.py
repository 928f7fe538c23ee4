"""Settings that people write in YAML: parts of a tree, read and explained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pac_core.errors import BadInput

WORDS = {
    "tuple_type": "give a list, as in [a, b]",
    "model_type": "give keys with their values, as in {name: value}",
    "too_short": "the list is too short; give at least {min_length}",
    "too_long": "the list is too long; give at most {max_length}",
}
"""What is said of kinds of errors for which pydantic speaks of Python's types."""


class Part(BaseModel):
    """A frozen part of a tree of settings; a key that it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


def read_yaml(path: Path, way_out: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line of each of its dotted keys.

    Args:
        path: of the file.
        way_out: what to do if there is none.

    Raises:
        BadInput: no such file, not YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text) or {}
        lines = _lines(yaml.compose(text))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; {way_out}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise BadInput(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    except RecursionError as error:
        raise BadInput(f"{path}: an anchor (&) holds an alias (*) of itself; write the values out") from error
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: the configuration must be a mapping of keys to values")
    return tree, lines


def explain(error: ValidationError, model: type[BaseModel], source: str, lines: Mapping[str, int], way: str) -> str:
    """What is wrong with a tree, in one line.

    Args:
        error: of validating it as a ``model``.
        source: the file that it was read from, or empty, and
        lines: where its keys stand there.
        way: how to give a key that is missing, with ``{}`` for its name.
    """
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    where = f"{source}:{lines[path]}: " if path in lines else ""
    if first["type"] == "missing":
        where = f"{source}: " if source else ""
        return f"{where}'{path}' is not set; {way.format(path.replace('_', '-'))}"
    if first["type"] == "extra_forbidden":
        known = _keys_beside(first["loc"], model)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; keys here: {', '.join(known)}"
        return f"{where}'{path}' is not a key of the configuration{hint}"
    told = first["msg"].removeprefix("Value error, ")
    told = _worded(first["type"], first.get("ctx", {})) or told[0].lower() + told[1:]
    return f"{where}{path} = {first['input']!r}: {told}" if path else f"{source}: {told}".removeprefix(": ")


def _worded(kind: str, facts: Mapping[str, Any]) -> str:
    """What `WORDS` has for a kind of error; empty if nothing."""
    told = WORDS.get(kind, "")
    return told.format(**facts) if kind.startswith("too_") else told


def _lines(node: yaml.Node | None, above: str = "") -> dict[str, int]:
    """Line of each dotted key below a YAML node; a key that is there twice is an error, where YAML takes the last."""
    if isinstance(node, yaml.SequenceNode):
        pairs = [(str(index), value, value) for index, value in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    else:
        return {}
    found: dict[str, int] = {}
    for name, place, value in pairs:
        if f"{above}{name}" in found:
            raise yaml.MarkedYAMLError(problem=f"'{name}' is there twice", problem_mark=place.start_mark)
        found |= {f"{above}{name}": place.start_mark.line + 1, **_lines(value, f"{above}{name}.")}
    return found


def _keys_beside(location: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            (model,) = [kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)]
    return sorted(model.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
