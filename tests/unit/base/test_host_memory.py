"""What host memory is left, on machines that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.host_memory import available_memory

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 102400 kB\nBuffers: 1 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


def group(root: Path, name: str, most: str, taken: int, inactive: int) -> None:
    folder = root / "sys/fs/cgroup" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(most + "\n")
    (folder / "memory.current").write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_without_control_groups_the_machine_says(root: Path) -> None:
    assert available_memory(root) == 100 * MIB
    (root / "proc/self/cgroup").write_text("5:memory:/slurm/job_1\n0::/\n")
    assert available_memory(root) == 100 * MIB
    (root / "proc/self/cgroup").write_text("0::/away/../gone\n")
    assert available_memory(root) == 100 * MIB


def test_a_group_above_bounds_what_is_in_it(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/slurm/job_1/step_0\n")
    group(root, "slurm/job_1/step_0", "max", 5 * MIB, 0)
    assert available_memory(root) == 100 * MIB
    group(root, "slurm/job_1", str(64 * MIB), 30 * MIB, 4 * MIB)
    assert available_memory(root) == 38 * MIB
    group(root, "slurm/job_1/step_0", str(8 * MIB), 9 * MIB, 0)
    assert available_memory(root) == 0


def test_this_machine_has_some() -> None:
    assert 0 < available_memory() < 1 << 60
