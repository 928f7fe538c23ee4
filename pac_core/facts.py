"""What a device is: its memory, cores and accelerator, and how fast it multiplies matrices.

``python -m pac_core.facts --threads N --disk DIR`` prints them as JSON: a process of its own spares one that only waits
for work the memory that torch takes.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pac_core.errors import RunFailed
from pac_core.machine import core_count, free_disk, free_memory, memory_bytes, python_command

MEASURE_SECONDS = 0.25
"""How long matrices are multiplied."""

_SHAPE = (512, 768, 3072)  # tokens of a micro-batch, and the widths of a transformer layer's largest product
_MEASURE_PATIENCE = 120.0  # seconds for a process to import torch on a slow device and measure


class DeviceFacts(BaseModel):
    """What a device says of itself.

    Attributes:
        name: its own.
        system: operating system and processor architecture, as in ``Linux x86_64``.
        cores: that this process may use.
        memory_bytes: main memory, or what the control group allows.
        memory_free_bytes: what could be taken without swapping; None where the system does not tell.
        disk_free_bytes: room where its cache lies.
        accelerator: name of a GPU or the like; empty if torch finds none.
        accelerator_bytes: its memory; 0 where there is none, or torch does not tell.
        gflops: 10^9 float32 operations a second in matrix products of a transformer's sizes, with `threads` threads.
        threads: for computing.
        torch: version.
        emulates: card of the device that it stands for; empty for one that computes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    system: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int | None
    disk_free_bytes: int
    accelerator: str
    accelerator_bytes: int
    gflops: float
    threads: int
    torch: str
    emulates: str = ""


def facts_here(name: str, disk: Path, threads: int | None = None) -> DeviceFacts:
    """The facts of this device; its speed is measured once a process, in less than half a second.

    Args:
        name: to call it.
        disk: folder that is to hold a cache; need not be there.
        threads: to compute with; all cores if None.
    """
    import torch

    threads = threads or core_count()
    accelerator, accelerator_bytes = _accelerator()
    return DeviceFacts(
        name=name,
        system=f"{platform.system()} {platform.machine()}",
        cores=core_count(),
        memory_bytes=memory_bytes(),
        memory_free_bytes=free_memory(),
        disk_free_bytes=free_disk(disk),
        accelerator=accelerator,
        accelerator_bytes=accelerator_bytes,
        gflops=measured_gflops(threads),
        threads=threads,
        torch=str(torch.__version__),
    )


def facts_of_process(name: str, disk: Path, threads: int | None = None) -> DeviceFacts:
    """`facts_here`, found out by another process.

    Raises:
        RunFailed: it fails, as where torch is broken.
    """
    threads = threads or core_count()
    command = [*python_command("pac_core.facts"), "--name", name, "--disk", str(disk), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=_MEASURE_PATIENCE, check=True)
        return DeviceFacts.model_validate_json(done.stdout)
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip().splitlines() or [f"status {error.returncode}"]
        raise RunFailed(f"cannot find out about this device: {words[-1]}") from error
    except (subprocess.TimeoutExpired, ValidationError) as error:
        raise RunFailed(f"cannot find out about this device: {str(error).splitlines()[0]}") from error


def refreshed(facts: DeviceFacts, disk: Path) -> DeviceFacts:
    """``facts`` with the memory and the disk that are free now."""
    now = {"memory_free_bytes": free_memory(), "disk_free_bytes": free_disk(disk)}
    return facts.model_copy(update=now)


@functools.cache
def measured_gflops(threads: int) -> float:
    """10^9 operations a second of float32 matrix products on the CPU: the median of many."""
    import torch

    from pac_core.hardware import fast_products

    rows, inner, columns = _SHAPE
    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), fast_products(rows):
            torch.mm(left, right, out=out)
            seconds, until = [], time.perf_counter() + MEASURE_SECONDS
            while time.perf_counter() < until:
                began = time.perf_counter()
                torch.mm(left, right, out=out)
                seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return round(2 * rows * inner * columns / statistics.median(seconds) / 1e9, 2)


def _accelerator() -> tuple[str, int]:
    """Name and memory, through torch alone: other libraries are not there on every device that has a GPU."""
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return str(found.name), int(found.total_memory)
    if torch.backends.mps.is_available():
        return "Apple GPU", int(torch.mps.recommended_max_memory())
    return "", 0


def main() -> None:
    """Print the facts of this device."""
    parser = argparse.ArgumentParser(description="Facts of this device, as JSON.")
    parser.add_argument("--name", default=platform.node())
    parser.add_argument("--disk", type=Path, default=Path.cwd())
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    print(facts_here(given.name, given.disk, given.threads).model_dump_json())


if __name__ == "__main__":
    main()
