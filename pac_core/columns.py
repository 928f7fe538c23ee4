"""Column rules: which columns of a table hold the texts, the labels, the prompts, and what a valid cell is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pac_core.errors import BadInput
from pac_core.rows import Grid, Row, Table

ROLES = ("text", "text_pair", "label", "prompt", "context", "completion", "messages")
"""What a column can be; ``context`` is further text that follows the prompt after an empty line."""

LABELS = ("label", "intent", "category", "quality")
COMPLETIONS = ("completion", "answer", "output", "ref")
LAYOUTS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"prompt": "prompt", "completion": "completion"},
    {"prompt": "instruction", "context": "input", "completion": "output"},
    {"prompt": "question", "completion": "answer"},
    {"prompt": "mr", "completion": "ref"},
    {"text": "#1 string", "text_pair": "#2 string"},
    {"text": "sentence1", "text_pair": "sentence2"},
    {"text": "text", "text_pair": "text_pair"},
    {"text": "premise", "text_pair": "hypothesis"},
    {"text": "question1", "text_pair": "question2"},
    {"text": "question", "text_pair": "sentence"},
    {"text": "text"},
    {"text": "sentence"},
)
"""Role to column name, tried in this order, whatever the case of the letters."""

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)

Label = str | int | float


@dataclass(frozen=True)
class Message:
    """One turn of a chat: who speaks (``system``, ``user``, ``assistant``) and what is said."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One record of a data set in one of three forms: text (and pair) with a label, prompt with completion, or chat.

    Attributes:
        source: where it came from, as ``file:line``, for errors.
        text, text_pair: what is classified or scored.
        label: name or number of the class, or the score.
        prompt, completion: what is given and what shall be answered; joined exactly as they are.
        messages: the turns of a chat.
    """

    source: str
    text: str | None = None
    text_pair: str | None = None
    label: Label | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None


def check_mapping(columns: Mapping[str, str | int] | None) -> dict[str, str]:
    """``columns`` as role to column name; BadInput for a role that does not exist."""
    mapping = {role: str(column) for role, column in (columns or {}).items()}
    unknown = [role for role in mapping if role not in ROLES]
    if unknown:
        raise BadInput(f"columns: {unknown[0]!r} is not a role; the roles are {', '.join(ROLES)}")
    return mapping


def has_header(grid: Grid, mapping: Mapping[str, str]) -> bool:
    """Whether the first line of a CSV or TSV file names the columns rather than being a sample.

    It is a sample where ``mapping`` names columns by number, or where there are two cells, neither a known name, and
    the second looks like one label among the others: it comes again further down, or all of them are numbers.
    """
    first = [cell.strip() for cell in grid.lines[0][1]]
    known = {name for layout in LAYOUTS for name in layout.values()} | set(LABELS)
    if any(cell.lower() in known for cell in first) or any(column in first for column in mapping.values()):
        return True
    if mapping:
        return not all(column.isdecimal() for column in mapping.values())
    if len(first) != 2:
        return True
    others = [cells[-1].strip() for _, cells in grid.lines[1:]]
    numbers = all(_NUMBER.fullmatch(cell) for cell in (first[1], *others))
    few = len(set(others)) <= max(len(others) // 2, 2)
    return not (numbers or (few and first[1] in others))


def samples_of(table: Table, mapping: Mapping[str, str], *, require_label: bool) -> list[Sample]:
    """The samples of a table; BadInput names the first row that cannot be used."""
    roles = find_roles(table, mapping, require_label=require_label)
    labels = _labels(table, roles["label"], require_label) if "label" in roles else [None] * len(table.rows)
    return [_sample(row, roles, label, require_label) for row, label in zip(table.rows, labels)]


def find_roles(table: Table, mapping: Mapping[str, str], *, require_label: bool) -> dict[str, str]:
    """Role to column of ``table``: what ``mapping`` says, and the rest found by name."""
    for role, column in mapping.items():
        if column not in table.columns:
            raise BadInput(f"{table.name}: no column {column!r} for {role}; found: {_listed(table.columns)}")
    free = {column.strip().lower(): column for column in table.columns if column not in mapping.values()}
    roles = dict(mapping)
    if not roles.keys() & {"text", "prompt", "messages"}:
        roles = _find_layout(table, free, require_label) | roles
    wanted = {"text": ("label", LABELS), "prompt": ("completion", COMPLETIONS)}
    for given, (role, names) in wanted.items():
        found = [free[name] for name in names if name in free]
        if given in roles and role not in roles and found:
            roles[role] = found[0]
    _check_roles(table, roles, mapping, require_label)
    return roles


def _find_layout(table: Table, free: Mapping[str, str], require_label: bool) -> dict[str, str]:
    optional = {"context"} if require_label else {"context", "completion"}
    for layout in LAYOUTS:
        if all(column in free for role, column in layout.items() if role not in optional):
            return {role: free[column] for role, column in layout.items() if column in free}
    example = dict(zip(("text", "label"), table.columns))
    shown = ", ".join(f"{role}: {column}" for role, column in example.items())
    raise BadInput(
        f"{table.name}: no known columns; found: {_listed(table.columns)}; known are text or sentence with label, "
        f"sentence1 + sentence2, prompt + completion, question + answer, messages; "
        f"map others in the configuration, for example columns: {{{shown}}}"
    )


def _check_roles(table: Table, roles: Mapping[str, str], mapping: Mapping[str, str], require_label: bool) -> None:
    if not require_label:
        return
    if "prompt" in roles and "completion" not in roles:
        missing, needed = "completion", COMPLETIONS
    elif "text" in roles and "label" not in roles:
        missing, needed = "label", LABELS
    else:
        return
    plain = missing == "label" and "text_pair" not in roles
    if plain and (len(table.columns) == 1 or "text" in mapping):
        return  # plain text for a language model
    hint = f"; to learn the plain text alone: columns: {{text: {roles['text']}}}" if plain else ""
    raise BadInput(
        f"{table.name}: no {missing} column ({', '.join(needed)}); found: {_listed(table.columns)}; "
        f"name yours with columns: {{{missing}: NAME}}{hint}"
    )


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(columns[:12])
    return f"{shown}, ... ({len(columns)} in all)" if len(columns) > 12 else shown


def _sample(row: Row, roles: Mapping[str, str], label: Label | None, require_label: bool) -> Sample:
    if "messages" in roles:
        return Sample(row.source, messages=_messages(row, roles["messages"]))
    if "text" in roles:
        pair = _text(row, roles["text_pair"]) if "text_pair" in roles else None
        return Sample(row.source, text=_text(row, roles["text"]), text_pair=pair, label=label)
    prompt = _text(row, roles["prompt"])
    if row.cells.get(roles.get("context", "")):
        prompt += "\n\n" + _text(row, roles["context"])
    wanted = "completion" in roles and (require_label or row.cells.get(roles["completion"]))
    return Sample(row.source, prompt=prompt, completion=_text(row, roles["completion"]) if wanted else None)


def _text(row: Row, column: str) -> str:
    value = row.cells.get(column)
    if value is None:
        kind = "chat and other rows cannot be mixed in" if "messages" in row.cells else "every row needs it in"
        raise BadInput(f"{row.source}: no {column!r}; {kind} one file")
    return _checked(row.source, column, value)


def _checked(source: str, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{source}: {column!r} must be text, not {value!r:.40}; put it in quotes")
    if not value.strip():
        raise BadInput(f"{source}: {column!r} is empty; fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{source}: {column!r} holds half of a surrogate pair (\\ud800 to \\udfff); remove it") from None
    return value


def _messages(row: Row, column: str) -> tuple[Message, ...]:
    value = row.cells.get(column)
    if value is None:
        raise BadInput(f"{row.source}: no {column!r}; chat and other rows cannot be mixed in one file")
    if not isinstance(value, list) or not value:
        raise BadInput(f'{row.source}: {column!r} must be a list such as [{{"role": "user", "content": "..."}}]')
    return tuple(_message(row.source, turn) for turn in value)


def _message(source: str, turn: Any) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise BadInput(f"{source}: each message needs role and content, this one is {turn!r:.60}")
    return Message(_checked(source, "role", turn["role"]), _checked(source, "content", turn["content"]))


def _labels(table: Table, column: str, required: bool) -> list[Label | None]:
    """The labels in one type: text, int, or float as soon as one number has a fraction."""
    raw = [_raw_label(row, column, required) for row in table.rows]
    sources = [row.source for row in table.rows]
    labels = raw if table.typed else _parsed(sources, raw)
    given = [(source, label) for source, label in zip(sources, labels) if label is not None]
    for source, label in given:
        if isinstance(label, str) != isinstance(given[0][1], str):
            raise BadInput(
                f"{source}: the label {label!r} and that of {given[0][0]}, {given[0][1]!r}, are of different types; "
                "write all labels as text or all as numbers"
            )
        if isinstance(label, float) and not math.isfinite(label):
            raise BadInput(f"{source}: the label {label!r} is not a finite number; correct it or remove the row")
    floats = any(isinstance(label, float) for label in labels)
    return [float(label) if floats and label is not None else label for label in labels]


def _raw_label(row: Row, column: str, required: bool) -> Label | None:
    value = row.cells.get(column)
    if isinstance(value, bool):
        return str(value).lower()
    value = value.strip() if isinstance(value, str) else value
    if isinstance(value, int | float) or (isinstance(value, str) and value):
        return value
    if value not in (None, ""):
        raise BadInput(f"{row.source}: the label in {column!r} must be text or a number, not {value!r:.40}")
    if required:
        raise BadInput(f"{row.source}: no label in {column!r}; fill it in or remove the row")
    return None


def _parsed(sources: list[str], raw: list[Label | None]) -> list[Label | None]:
    """Labels of a file without types: numbers if all of them are, text otherwise."""
    texts = [(source, str(label)) for source, label in zip(sources, raw) if label is not None]
    if all(_INTEGER.fullmatch(text) for _, text in texts):
        return [None if label is None else int(label) for label in raw]
    other = [(source, text) for source, text in texts if not _NUMBER.fullmatch(text)]
    if not other:
        return [None if label is None else float(label) for label in raw]
    numbers = len(texts) - len(other)
    fractions = any(_NUMBER.fullmatch(text) and not _INTEGER.fullmatch(text) for _, text in texts)
    broken = all(_NOT_FINITE.fullmatch(text) for _, text in other)
    if numbers > len(other) and (fractions or broken):
        source, text = other[0]
        raise BadInput(
            f"{source}: the label {text!r} is not a finite number, unlike most; correct it or remove the row"
        )
    return raw
