"""What ``liver-slurm doctor`` asks of all nodes."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from liver_slurm.config.schema import JobConfig, JobSection, LiveSection, ModelSection
from liver_slurm.doctor.gather import _requirements, probe_script


def test_an_extra_is_asked_for_where_the_job_needs_it() -> None:
    usual, ucx = _requirements("auto"), _requirements("ucx")
    assert usual["torch"].startswith(">=")
    assert ucx.keys() - usual.keys() == {"nixl"}


def test_an_interpreter_in_a_container_learns_which_folder_to_take_along(tmp_path: Path) -> None:
    python = tmp_path / "container.sh"
    python.write_text('#!/bin/bash\necho "$RUN_DIR"\n')
    python.chmod(0o755)
    job = JobSection(run_root=str(tmp_path / "is made" / "later"))
    config = replace(JobConfig(model=ModelSection()), job=job, live=LiveSection(python=str(python)))
    done = subprocess.run(["bash", "-c", probe_script(config, None, torch=False)], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}\n"
