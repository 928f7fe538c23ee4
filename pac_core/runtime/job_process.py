"""The process of a device in a run, as whoever starts it sees it: a leader on its machine, or a worker, which stays
small while the process has the memory and the threads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict

from pac_core.machine import python_command
from pac_core.runtime.assignment import Assignment

READY = b"ready\n"
"""What the process writes to its standard output once it is about to connect."""

STOPPED = 130
"""Exit status of a process that was told to end, as of `pac` after Ctrl-C."""

GRACE_SECONDS = 3.0
"""How long it may take to end when it is told to, before it is killed."""


class JobProcess:
    """Runs ``python -m pac_core.member``. It has a session of its own, so that Ctrl-C reaches alone the process that
    started it, and ends by itself once that is gone, whose end closes its standard input."""

    def __init__(self, assignment: Assignment) -> None:
        threads = str(assignment.threads)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `ended`
        self._process = subprocess.Popen(
            python_command("pac_core.member"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `ended` notices
            self._process.stdin.write(json.dumps(asdict(assignment)).encode() + b"\n")
            self._process.stdin.flush()
        os.set_blocking(self._process.stdout.fileno(), False)
        self._heard = b""
        self._kill_at: float | None = None

    def ready(self) -> bool:
        """Whether it is about to connect, or further."""
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            self._heard += os.read(self._process.stdout.fileno(), len(READY)) if len(self._heard) < len(READY) else b""
        return self._heard == READY

    def stop(self) -> None:
        """Ask it to end; `ended` kills it if it does not in time."""
        if not self.stopping:
            self._process.terminate()
            self._kill_at = time.monotonic() + GRACE_SECONDS

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._kill_at is not None

    def ended(self) -> tuple[int, str] | None:
        """Its exit status, and its last words or what killed it; None while it runs."""
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._process.kill()
        code = self._process.poll()
        if code is None:
            return None
        if self.stopping and code < 0:
            return STOPPED, "it was told to end"
        why = f"it was ended by {signal.Signals(-code).name}" if code < 0 else self._last_words()
        return code, why or (f"it ended with status {code}" if code else "")

    def release(self) -> None:
        """End it at once, if it still runs, and release its pipes."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else ""
