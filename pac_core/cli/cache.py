"""``pac cache``: what activation caches there are, whether they are sound, and how to give back their room.

`pac_core.caches` imports torch, so it is imported when a command runs.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pac_core.cli.app import emit, say
from pac_core.errors import BadInput
from pac_core.registry import Registry

if TYPE_CHECKING:
    from pac_core.caches import CacheFolder
    from pac_core.contracts.store import Store

Folder = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir", help="A cache folder, or a folder of them; default $PAC_CACHE_DIR, else the user's cache folder."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def list_(cache_dir: Folder = None, as_json: AsJson = False) -> None:
    """List caches with model, dtype, size and last use."""
    from pac_core.caches import find_caches

    rows = [_row(cache) for cache in find_caches(cache_dir)]
    if as_json:
        emit({"caches": rows})
        return
    if not rows:
        say("no caches")
        return
    table = Table("folder", "model", "dtype", "entries", "bytes", "last used")
    for row in rows:
        size = human_size(row["bytes"]) if "bytes" in row else row["problem"]
        models, dtypes = ", ".join(row["models"]), ", ".join(row["dtypes"])
        table.add_row(row["folder"], models, dtypes, str(row.get("entries", "")), size, row["last_used"])
    Console().print(table)


def stat(cache_dir: Folder = None, as_json: AsJson = False) -> None:
    """Show caches in detail: sizes, files, and what is there of each backbone, tap set and dtype."""
    details = [_detail(cache) for cache in _sound(cache_dir)]
    if as_json:
        emit({"caches": details})
        return
    for row in details:
        table = Table("", row["folder"], title=", ".join(row["models"]), title_justify="left")
        for key, value in row.items():
            if isinstance(value, int):
                table.add_row(key.replace("_", " "), human_size(value) if "bytes" in key else f"{value:,}")
        table.add_row("store", row["store"])
        table.add_row("last used", row["last_used"])
        for n in row["namespaces"]:
            what = f"{n['entries']:,} entries, {n['tokens']:,} tokens, {human_size(n['bytes_raw'])}"
            taps = "; ".join(f"{stream} {_ranges(indices)}" for stream, indices in n["taps"].items())
            table.add_row(f"{n['dtype']}, taps {taps}", what)
        Console().print(table)


def verify(
    cache_dir: Folder = None,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged entries; they are computed again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every entry and check its checksum; exit code 1 if damaged entries remain."""
    found, checked, registry = [], 0, Registry()
    for cache in _sound(cache_dir):
        with cache.open(registry) as store:
            damaged = _damaged(cache, store)
            checked += store.stats().entries
            found += [{"folder": str(cache.path), "key": key.hex()} for key in damaged]
            if repair:
                store.delete_many(damaged)
    for row in found:
        say(f"damaged{' and removed' if repair else ''}: {row['key']} in {row['folder']}")
    if as_json:
        emit({"checked": checked, "damaged": found, "repaired": repair})
    else:
        say(f"{checked} entries checked, {len(found)} damaged")
    if found and not repair:
        say("run it again with --repair to remove them; they will be computed again when needed")
        raise typer.Exit(1)


def prune_(
    cache_dir: Folder = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Remove what was used longest ago until all takes no more, as in 20GB.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Remove caches not used for so long, as in 30d or 12h.")
    ] = None,
    except_model: Annotated[
        list[str] | None, typer.Option(help="Keep caches of this model; alone: remove all others.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove caches that are old or too large."""
    if max_bytes is None and older_than is None and not except_model:
        raise BadInput("say what to remove: --max-bytes SIZE, --older-than AGE or --except-model NAME")
    from pac_core.caches import prune

    freed = prune(
        _sound(cache_dir),
        Registry(),
        max_bytes=None if max_bytes is None else parse_size(max_bytes),
        older_than=None if older_than is None else parse_age(older_than),
        except_models=except_model or (),
    )
    _tell([(cache.path, size) for cache, size in freed], as_json)


def clear_(
    cache_dir: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove all entries of a cache, or of all caches."""
    from pac_core.caches import clear

    caches = _sound(cache_dir)
    for cache in caches:
        say(f"{cache.path}: {', '.join(cache.models) or 'empty'}")
    if caches and not yes and not _agreed(f"remove {len(caches)} cache(s)?"):
        say("nothing was removed")
        return
    registry = Registry()
    _tell([(cache.path, clear(cache, registry)) for cache in caches], as_json)


def add(app: typer.Typer) -> None:
    """Add the group to ``app``."""
    group = typer.Typer(help="Look after activation caches.", epilog="Example: pac cache list", no_args_is_help=True)
    group.command("list", epilog="Example: pac cache list")(list_)
    group.command("stat", epilog="Example: pac cache stat --cache-dir runs/cache")(stat)
    group.command("verify", epilog="Example: pac cache verify --repair")(verify)
    group.command("prune", epilog="Example: pac cache prune --max-bytes 20GB --older-than 30d")(prune_)
    group.command("clear", epilog="Example: pac cache clear --cache-dir runs/cache --yes")(clear_)
    app.add_typer(group, name="cache")


def parse_size(text: str) -> int:
    """Bytes in ``20GB``, ``1.5 GiB``, ``500M`` or ``1000``.

    Raises:
        BadInput: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise BadInput(f"'{text}' is not a size; write it as 20GB, 512MiB or a number of bytes")
    return int(float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2].lower()])


def parse_age(text: str) -> float:
    """Seconds in ``30d``, ``12h``, ``2w`` or ``90m``.

    Raises:
        BadInput: it is no age.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*", text, re.IGNORECASE)
    if match is None:
        raise BadInput(f"'{text}' is not an age; write it as 30d, 12h, 2w or 90m")
    return float(match[1]) * _SECONDS[match[2].lower()]


def human_size(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _sound(cache_dir: Path | None) -> list[CacheFolder]:
    """Caches whose manifest can be read; the others are named on stderr, or an error if there are no others.

    Raises:
        BadInput: the folder asked for is no cache, or none of its caches can be read.
    """
    from pac_core.caches import find_caches

    caches = find_caches(cache_dir)
    if cache_dir is not None and not caches:
        raise BadInput(f"there is no cache in {cache_dir}")
    broken = [cache for cache in caches if cache.manifest is None]
    if broken and len(broken) == len(caches):
        raise BadInput(broken[0].problem)
    for cache in broken:
        say(f"warning: {cache.problem}")
    return [cache for cache in caches if cache.manifest is not None]


def _row(cache: CacheFolder) -> dict[str, Any]:
    from pac_core.caches import size_of

    used = datetime.fromtimestamp(cache.used).isoformat(" ", "seconds")
    row = {"folder": str(cache.path), "models": cache.models, "dtypes": cache.dtypes, "last_used": used}
    try:
        with cache.open(Registry()) as store:
            return {**row, **asdict(size_of(store))}
    except BadInput as error:
        return {**row, "problem": str(error)}


def _detail(cache: CacheFolder) -> dict[str, Any]:
    from pac_core.caches import namespace_sizes

    assert cache.manifest is not None
    with cache.open(Registry()) as store:
        parts = [
            {**asdict(n.namespace), "entries": n.entries, "tokens": n.tokens, "bytes_raw": n.bytes_raw}
            for n in namespace_sizes(cache, store)
        ]
        return {**_row(cache), **store.details(), "store": cache.manifest.store, "namespaces": parts}


def _damaged(cache: CacheFolder, store: Store) -> list[bytes]:
    """Damaged keys of one cache, with progress on stderr if that is a terminal."""
    from pac_core.caches import damaged_keys

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(cache.path.name)
        return list(damaged_keys(store, lambda done, total: bar.update(task, completed=done, total=total)))


def _ranges(indices: tuple[int, ...]) -> str:
    """``0-12`` for consecutive indices, else all of them."""
    if indices and list(indices) == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]}-{indices[-1]}"
    return ",".join(map(str, indices)) or "none"


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        raise BadInput("nothing was removed: there is nobody to ask; add --yes") from error


def _tell(freed: list[tuple[Path, int]], as_json: bool) -> None:
    total = sum(size for _, size in freed)
    if as_json:
        emit({"freed_bytes": total, "caches": [{"folder": str(path), "freed_bytes": size} for path, size in freed]})
        return
    for path, size in freed:
        say(f"{path}: {human_size(size)} freed")
    say(f"{human_size(total)} freed in all")
