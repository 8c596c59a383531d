"""``python run_local_job.py RUN_DIR WORKERS STANDBYS [STEP:LAYOUT]…``: :func:`run_local` in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from liver_slurm.app.local_run import run_local
from liver_slurm.base import interrupts
from liver_slurm.config.load import read_job
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.paths import RunDir

if __name__ == "__main__":
    run_dir = RunDir(Path(sys.argv[1]))
    resizes = [(int(step), Layout.parse(layout)) for step, layout in (text.split(":") for text in sys.argv[4:])]
    config = read_job(run_dir.job_file)
    interrupts.run_command(lambda: run_local(config, run_dir, int(sys.argv[2]), int(sys.argv[3]), resizes))
