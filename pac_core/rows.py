"""Reading data files and Hugging Face data sets into rows, without knowing yet what the columns mean."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pac_core.errors import BadInput
from pac_core.jsontext import json_items, json_members

SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Row:
    """One record: where it stands (``file:line``) and its cells by column name."""

    source: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Records with named columns.

    Attributes:
        name: the file or data set, for errors.
        columns: every column that occurs in some row, in order of appearance.
        rows: the records, at least one.
        typed: whether numbers are numbers (JSON, data sets) or text like all else (CSV, TSV).
    """

    name: str
    columns: tuple[str, ...]
    rows: list[Row]
    typed: bool = True


@dataclass(frozen=True)
class Grid:
    """Lines of a CSV or TSV file whose first line may or may not be a header: (line number, cells)."""

    name: str
    lines: list[tuple[int, list[str]]]

    def table(self, *, header: bool) -> Table:
        """The lines as a `Table`; without a header the columns are called "0", "1", ...

        Raises:
            BadInput: a line with too few or too many cells, a column name that occurs twice, no line but the header.
        """
        first = self.lines[0][1]
        columns = [name.strip() for name in first] if header else [str(i) for i in range(len(first))]
        twice = sorted({name for name in columns if name and columns.count(name) > 1})
        if twice:
            raise BadInput(f"{self.name}:1: the column {twice[0]!r} occurs twice; rename one")
        lines = self.lines[1:] if header else self.lines
        if not lines:
            raise BadInput(f"{self.name} has a header but no rows; give it at least one sample")
        for number, cells in lines:
            if len(cells) != len(columns):
                raise BadInput(
                    f"{self.name}:{number} has {len(cells)} cells, but the first line has {len(columns)} "
                    f"({', '.join(columns)}); look for a missing or an extra separator or quote"
                )
        rows = [Row(f"{self.name}:{number}", dict(zip(columns, cells))) for number, cells in lines]
        return Table(self.name, tuple(columns), rows, typed=False)


def load(path_or_id: str | Path) -> Grid | Table:
    """Read a file, ``file.json:split``, a folder saved by ``datasets``, ``org/name:split``, ``org/name:config:split``.

    Raises:
        BadInput: nothing of that name, not UTF-8, malformed, empty, or a split that has to be named.
    """
    spec = str(path_or_id)
    name, *parts = [spec] if Path(spec).exists() else spec.split(":")
    path = Path(name)
    if path.is_dir():
        return _read_dataset(name, parts)
    if path.suffix.lower() in SUFFIXES:
        return _read_file(path, parts)
    if path.exists():
        raise BadInput(f"{name}: files ending in {path.suffix or 'nothing'!r} are not read; use {', '.join(SUFFIXES)}")
    if not _HUB_ID.fullmatch(name):
        raise BadInput(_missing(path))
    return _read_dataset(name, parts)


def _read_file(path: Path, parts: list[str]) -> Grid | Table:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise BadInput(_missing(path))
    if parts and suffix != ".json":
        raise BadInput(f"{path} has no splits, so ':{':'.join(parts)}' names nothing; give the file name alone")
    text = _decode(path)
    if not text.strip():
        raise BadInput(f"{path} is empty; give it at least one sample")
    if suffix == ".jsonl":
        return _table(str(path), _json_lines(path, text))
    if suffix == ".json":
        return _read_json(path, text, parts)
    lines = list(_csv_lines(path, text) if suffix == ".csv" else _tsv_lines(text))
    return Grid(str(path), lines)


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does its folder {folder}; check the path"
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3)
    hint = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
    return f"{path} does not exist; {hint}"


def _decode(path: Path) -> str:
    """Text of a UTF-8 file without its byte-order mark, line ends untouched."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        start = error.start
    line = data.count(b"\n", 0, start) + 1
    column = start - data.rfind(b"\n", 0, start)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
    raise BadInput(
        f"{path}:{line}: byte {column} of the line (0x{data[start]:02x}, offset {start} in the file) is not UTF-8; "
        f"convert the file, for example: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}"
    )


def _tsv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not splitlines(): that also cuts at characters such as U+2028, which are ordinary text here.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line.split("\t")


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(len(text) + 1)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(
            f"{path}:{start}: not valid CSV ({error}); a quote inside a quoted cell is written twice, "
            "and a file whose quotes are plain text can be saved as .tsv"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{source}: not valid JSON ({error}); each line must be one whole JSON object") from None
        yield _record(source, value)


def _record(source: str, value: Any) -> Row:
    """A row from a JSON object, or from a list of cells such as ``[text, intent]``."""
    if isinstance(value, dict):
        return Row(source, value)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(cell, str | int | float) for cell in value):
        return Row(source, {"text": value[0], "label": value[1]})
    raise BadInput(
        f'{source}: a sample must be a JSON object such as {{"text": ..., "label": ...}} or a list [text, label], '
        f"not {json.dumps(value)[:40]}"
    )


def _read_json(path: Path, text: str, parts: list[str]) -> Table:
    try:
        value = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise BadInput(
            f"{path}:{line}: not valid JSON ({error}); one JSON object a line needs the ending .jsonl"
        ) from None
    if isinstance(value, list):
        if parts:
            raise BadInput(
                f"{path} is one list without splits, so {':'.join(parts)!r} names nothing; give the file alone"
            )
        return _table(str(path), _json_array(path, text, text.index("[")))
    if not isinstance(value, dict):
        raise BadInput(f"{path}: must hold a list of samples or an object of splits, not {text.strip()[:40]}")
    splits = {key: at for key, at, part in json_members(text) if isinstance(part, list)}
    split = _choose(str(path), list(splits), parts)
    return _table(f"{path}:{split}", _json_array(path, text, splits[split]))


def _json_array(path: Path, text: str, at: int) -> Iterator[Row]:
    """Rows of the array that starts at ``text[at]``, which is known to be valid JSON."""
    line = text.count("\n", 0, at) + 1
    for start, value in json_items(text, at):
        line += text.count("\n", at, start)
        at = start
        yield _record(f"{path}:{line}", value)


def _choose(name: str, splits: list[str], parts: list[str]) -> str:
    """The split named last in ``parts``, or the only one there is."""
    known = ", ".join(sorted(splits)) or "none"
    if not parts and len(splits) == 1:
        return splits[0]
    if not parts:
        example = "train" if "train" in splits else next(iter(sorted(splits)), "SPLIT")
        raise BadInput(f"{name} has the splits {known}; choose one, for example {name}:{example}")
    if parts[-1] not in splits:
        raise BadInput(f"{name} has no split {parts[-1]!r}; it has: {known}")
    return parts[-1]


def _read_dataset(name: str, parts: list[str]) -> Table:
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"{name} is no file ending in {', '.join(SUFFIXES)}; to read a Hugging Face data set: "
            'pip install "pac-core[hub]"'
        ) from None
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        config = parts[0] if len(parts) == 2 else None
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the library raises its own, fsspec's, pyarrow's and the network's errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{name} is neither a file here nor a data set that can be loaded ({reason})") from None
    if isinstance(loaded, datasets.DatasetDict):
        split = _choose(name, list(loaded), parts)
        return _table(f"{name}:{split}", _dataset_rows(f"{name}:{split}", loaded[split]))
    if parts:
        raise BadInput(
            f"{name} is one data set without splits, so {':'.join(parts)!r} names nothing; give the name alone"
        )
    return _table(name, _dataset_rows(name, loaded))


def _dataset_rows(name: str, dataset: Any) -> Iterator[Row]:
    """Rows with class numbers replaced by their names; -1, which stands for a hidden label, becomes None."""
    names = {column: feature.names for column, feature in dataset.features.items() if hasattr(feature, "names")}
    for number, record in enumerate(dataset, 1):
        for column, classes in names.items():
            index = record[column]
            record[column] = None if index is None or index < 0 else classes[index]
        yield Row(f"{name}:{number}", record)


def _table(name: str, rows: Iterable[Row]) -> Table:
    kept = list(rows)
    if not kept:
        raise BadInput(f"{name} is empty; give it at least one sample")
    return Table(name, tuple(dict.fromkeys(column for row in kept for column in row.cells)), kept)
