"""Main memory of this process, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process now; its peak so far where the system does not say."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return peak_rss_bytes()
    return pages * resource.getpagesize()
