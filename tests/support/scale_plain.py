"""Ordinary preemptible jobs in the place of an elastic run: what production waits for where only Slurm gives back."""

from __future__ import annotations

from pathlib import Path

from scale_repeat import Repeated
from scale_slurmctld import command

SCRIPT = Path(__file__).with_name("scale_plain.sh")
NAME = "scale-plain"
EVERY = 5.0
"""Seconds between two looks at how many there are."""


class PlainJobs:
    """As many jobs as a run would have, of the same size, that run or wait in the queue."""

    def __init__(self, nodes: int, nodes_per_job: int) -> None:
        self._most, self._size = nodes // nodes_per_job, nodes_per_job
        self._submitting: Repeated | None = None

    def start(self) -> None:
        """Submit them, and again and again what was taken of them."""
        self._submitting = Repeated(self._submit, EVERY)

    def _submit(self) -> None:
        there = command("squeue", "-h", f"--name={NAME}", "--states=PD,R,CF", "-o", "%i").split()
        options = ["--partition=scavenger", f"--job-name={NAME}", f"--nodes={self._size}", "--time=60"]
        for _ in range(self._most - len(there)):
            command("sbatch", *options, "--no-requeue", "--signal=B:USR2@60", "--output=/dev/null", str(SCRIPT))

    def check(self) -> None:
        """Fail if they are not submitted any more."""
        assert self._submitting is not None
        self._submitting.check()

    def close(self) -> None:
        """End all of them."""
        if self._submitting is not None:
            self._submitting.close()
        command("scancel", f"--name={NAME}")
