"""``python -m pac_core.job``: the process in which a worker takes part in a run.

See `pac_core.runtime.job_process`. It is told what to do by an `Assignment` on its standard input, and ends when that
is closed.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import torch

from pac_core.config import RunConfig
from pac_core.errors import PacError
from pac_core.finetune import FineTuner
from pac_core.registry import Registry
from pac_core.runtime.assignment import Assignment, connect
from pac_core.runtime.job_process import READY
from pac_core.runtime.load import warm_up


def main() -> int:
    """Take part; returns the exit status: that of `pac`, with the reason on stderr."""
    assignment = Assignment(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_worker, daemon=True).start()
    torch.set_num_threads(assignment.threads)
    try:
        config, registry = RunConfig.build(assignment.config), Registry(blocked=assignment.blocked)
        warm_up(config, registry)
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        with connect(assignment, registry) as transport:
            FineTuner(config, registry=registry).take_part(transport)
    except (PacError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_worker() -> None:
    """End this process, wherever it is, once nobody holds the other end of its standard input."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
