"""``python -m pac_core.member``: a process that takes part in a run which another one leads, or is measured for it, on
this machine or on another one, where a worker has started it.

See `pac_core.runtime.job_process`. It is told what to do by an `Assignment` on its standard input, and ends when that
is closed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading

import torch

from pac_core.config import RunConfig
from pac_core.errors import PacError, PeerLost
from pac_core.finetune import FineTuner
from pac_core.registry import Registry
from pac_core.runtime import profiling
from pac_core.runtime.assignment import Assignment, connect
from pac_core.runtime.job_process import READY
from pac_core.runtime.load import warm_up

FAREWELL_SECONDS = 1.0


def main() -> int:
    """Take part; returns the exit status: that of `pac`, with the reason on stderr."""
    assignment = Assignment(**json.loads(sys.stdin.buffer.readline()))
    watch = threading.Thread(target=_end_with_starter, args=(assignment,), daemon=True)
    watch.start()
    torch.set_num_threads(assignment.threads)
    try:
        take_part(assignment)
    except (PacError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        if isinstance(error, PeerLost) and assignment.folder:
            watch.join(FAREWELL_SECONDS)  # if it is the leader that is gone, its files are to go too
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130
    return 0


def take_part(assignment: Assignment) -> None:
    """Run as the device that ``assignment`` says.

    Raises:
        PacError: as `FineTuner.run` or `profiling.take_part`, or another device is gone.
        KeyboardInterrupt: the run was stopped.
    """
    config, registry = RunConfig.build(assignment.config), Registry(blocked=assignment.blocked)
    tuner = FineTuner(config, registry=registry)
    if assignment.purpose == "train":
        warm_up(config, tuner.registry)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    with connect(assignment, registry) as transport:
        if assignment.purpose == "profile":
            profiling.take_part(transport, config, registry)
        else:
            tuner.take_part(transport)


def _end_with_starter(assignment: Assignment) -> None:
    """End this process, wherever it is, once nobody holds the other end of its standard input."""
    while os.read(0, 1024):
        pass
    if assignment.folder:
        shutil.rmtree(assignment.folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
