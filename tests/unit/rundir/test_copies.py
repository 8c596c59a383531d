"""Copies of checkpoints: a folder that cannot be written is refused before the run, and what is missing is named."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from checkpoint_files import small_checkpoint

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import CheckpointSection, JobConfig, JobSection
from liver_slurm.rundir.copies import check_place, copies_folder, not_copied
from liver_slurm.rundir.registry import check_beginning, create_run


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    job = JobSection(run_root=str(tmp_path / "runs"))
    return JobConfig(job=job, checkpoint=CheckpointSection(copy_to=str(tmp_path / "copies" / "mine")))


def test_a_folder_that_cannot_be_written_is_refused_before_there_is_a_run(config: JobConfig, tmp_path: Path) -> None:
    check_place(config, make=False)
    assert not (tmp_path / "copies").exists()
    check_place(config, make=True)
    (tmp_path / "file").write_text("")
    broken = dataclasses.replace(config, checkpoint=CheckpointSection(copy_to=str(tmp_path / "file" / "mine")))
    with pytest.raises(BadInput, match=r"checkpoint\.copy_to: .*mine cannot be written: .*file is no folder"):
        check_beginning(broken)
    with pytest.raises(BadInput, match=r"checkpoint\.copy_to: .* cannot be written: Not a directory"):
        check_place(broken, make=True)
    with pytest.raises(BadInput, match=r"checkpoint\.copy_to"):
        create_run(broken)
    assert not (tmp_path / "runs").exists()


def test_checkpoints_without_a_copy_are_named(config: JobConfig) -> None:
    run_dir = create_run(config)
    first, second = (small_checkpoint(run_dir.checkpoints, step) for step in (5, 10))
    folder = copies_folder(config, run_dir)
    assert folder is not None
    assert not_copied(config, run_dir) == f"not copied to {folder}: {first.name}, {second.name}"
    shutil.copytree(run_dir.checkpoints, folder)
    assert not_copied(config, run_dir) == ""
    assert not_copied(dataclasses.replace(config, checkpoint=CheckpointSection()), run_dir) == ""
