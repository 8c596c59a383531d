"""Ordinary preemptible jobs in the place of an elastic run: what production waits for where only Slurm gives back."""

from __future__ import annotations

import time
from pathlib import Path

from scale_slurmctld import command

SCRIPT = Path(__file__).with_name("scale_plain.sh")
NAME = "scale-plain"
EVERY = 5.0
"""Seconds between two looks at how many there are."""


class PlainJobs:
    """As many jobs as a run would have, of the same size, that run or wait in the queue."""

    def __init__(self, nodes: int, nodes_per_job: int) -> None:
        self._most, self._size = nodes // nodes_per_job, nodes_per_job
        self._next = 0.0
        self.check()

    def check(self) -> None:
        """Submit anew what was taken."""
        if time.time() < self._next:
            return
        self._next = time.time() + EVERY
        there = command("squeue", "-h", f"--name={NAME}", "--states=PD,R,CF", "-o", "%i").split()
        options = ["--partition=scavenger", f"--job-name={NAME}", f"--nodes={self._size}", "--time=60"]
        for _ in range(self._most - len(there)):
            command("sbatch", *options, "--no-requeue", "--signal=B:USR2@60", "--output=/dev/null", str(SCRIPT))

    def close(self) -> None:
        """End all of them."""
        command("scancel", f"--name={NAME}")
