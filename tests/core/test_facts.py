"""What a device says of itself."""

import time
from pathlib import Path

import torch

from pac_core.facts import (
    MEASURE_SECONDS,
    DeviceFacts,
    facts_here,
    facts_of_process,
    measured_gflops,
    refreshed,
)
from pac_core.machine import core_count, memory_bytes


def test_facts_are_those_of_this_machine(tmp_path: Path) -> None:
    facts = facts_here("box", tmp_path / "not" / "there", 1)
    assert (facts.name, facts.cores, facts.threads) == ("box", core_count(), 1)
    assert 0 < (facts.memory_free_bytes or 1) <= facts.memory_bytes == memory_bytes()
    assert facts.disk_free_bytes > 0
    assert bool(facts.accelerator) == (torch.cuda.is_available() or torch.backends.mps.is_available())
    assert DeviceFacts.model_validate_json(facts.model_dump_json()) == facts
    assert refreshed(facts, tmp_path).gflops == facts.gflops


def test_speed_is_that_of_matrix_products_and_measured_once() -> None:
    measured_gflops.cache_clear()
    before, began = torch.get_num_threads(), time.perf_counter()
    speed = measured_gflops(1)
    took = time.perf_counter() - began
    left, right = torch.randn(512, 768), torch.randn(768, 3072)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    assert speed < 4 * 2 * 512 * 768 * 3072 / min(seconds) / 1e9  # another library may be chosen, and be faster
    assert speed > 0.1
    assert took < 8 * MEASURE_SECONDS
    assert torch.get_num_threads() == before
    began = time.perf_counter()
    assert measured_gflops(1) == speed
    assert time.perf_counter() - began < MEASURE_SECONDS


def test_another_process_says_the_same(tmp_path: Path) -> None:
    here, there = facts_here("box", tmp_path, 1), facts_of_process("box", tmp_path, 1)
    same = {"name", "system", "cores", "memory_bytes", "accelerator", "threads", "torch"}
    assert here.model_dump(include=same) == there.model_dump(include=same)
