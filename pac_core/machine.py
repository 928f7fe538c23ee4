"""What the system tells of this machine, and how to start a Python like this one. Imports no torch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
"""Where the control group of this process's container tells of itself (cgroup v2)."""


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Main memory, or the part of it that the container is allowed."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(GROUP / "memory.max")
    return whole if limit is None else min(whole, limit)


def free_memory() -> int | None:
    """Bytes of main memory that programs may still take, in the container that this one runs in; None where the system
    does not say."""
    found = [_fields(Path("/proc/meminfo")).get("MemAvailable", 0) * 1024, container_memory()]
    return min((room for room in found if room), default=None)


def container_memory(group: Path = GROUP) -> int | None:
    """Bytes that are left of a container's limit, counting the file cache as free; None without a limit."""
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return None
    return max(limit - used + _fields(group / "memory.stat").get("inactive_file", 0), 1)


def free_disk(folder: Path) -> int:
    """Bytes that may still be written to ``folder``, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def python_command(module: str) -> list[str]:
    """The command that runs a module in a Python like this one."""
    safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]  # import from here only if this process does
    return [sys.executable, *safe, "-m", module]


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none, as where a limit is ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _fields(file: Path) -> Mapping[str, int]:
    """Numbers by name, as the kernel writes them; empty where there is no such file."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
