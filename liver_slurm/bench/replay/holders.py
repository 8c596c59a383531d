"""Reclaimable nodes of the run that restarts: jobs that hold one node each, of the tier that production takes from."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

SCRIPT = """\
import os, signal, sys, time
folder, job = sys.argv[1], os.environ["SLURM_JOB_ID"]
def told(*_):
    if os.path.exists(f"{folder}/{job}.notice"):
        os._exit(0)
    open(f"{folder}/{job}.notice", "w").close()
signal.signal(signal.SIGTERM, told)
open(f"{folder}/{job}.begun", "w").close()
while True:
    signal.pause()
"""


class Holders:
    """As many jobs as there are reclaimable nodes; one that ends is submitted again, and waits in the queue."""

    def __init__(self, count: int, without: str, folder: Path) -> None:
        """Submit ``count`` jobs. ``without``: nodes that are not for them, as Slurm's --exclude."""
        self._folder, self._without = folder, without
        folder.mkdir(parents=True)
        (folder / "holder.py").write_text(SCRIPT)
        self._jobs = [self._submit() for _ in range(count)]

    def ready(self) -> list[str]:
        """Return the jobs that have a node and no notice, in the order in which they were submitted."""
        return [job for job in self._jobs if self._said(job, "begun") and not self._said(job, "notice")]

    def give_back(self, used: frozenset[str]) -> None:
        """End the jobs that had a notice and whose nodes are not used, and submit others in their place."""
        for number, job in enumerate(self._jobs):
            if self._said(job, "notice") and job not in used:
                subprocess.run(["scancel", job], check=True, timeout=60)
                self._jobs[number] = self._submit()

    def close(self) -> None:
        """End all of them."""
        subprocess.run(["scancel", *self._jobs], check=True, timeout=60)

    def _said(self, job: str, what: str) -> bool:
        return (self._folder / f"{job}.{what}").exists()

    def _submit(self) -> str:
        # In a step: Slurm tells those of a preemption, and not the batch script.
        program = shlex.join([sys.executable, "-S", f"{self._folder}/holder.py", str(self._folder)])
        inside = f"exec srun --ntasks=1 {program}"
        where = ("--partition=scavenger", f"--exclude={self._without}", "--nodes=1", "--ntasks=1", "--exclusive")
        options = (*where, "--time=120", "--no-requeue", f"--output={self._folder}/holders.log")
        command = ["sbatch", "--parsable", *options, "--wrap", inside]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=self._folder)
        return done.stdout.strip()
