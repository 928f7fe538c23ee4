"""What the system tells of this machine."""

import os
from pathlib import Path

import pytest

from pac_core.machine import container_memory, free_disk, free_memory


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not tell")
def test_free_memory_is_part_of_the_machines() -> None:
    found = free_memory()
    assert found is not None
    assert 1 << 20 < found < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_containers_limit_counts_without_its_file_cache(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert container_memory(tmp_path) == 300
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert container_memory(tmp_path) == 450
    (tmp_path / "memory.current").write_text("1300\n")
    assert container_memory(tmp_path) == 1


def test_free_disk_of_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet") > 1 << 20
