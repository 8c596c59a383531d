"""The owner of the reclaimable nodes: keeps all of them until the trace begins, then takes them as it says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import LiverError
from liver_slurm.bench.replay.schedule import Reclaim
from liver_slurm.devcluster.processes import until

TURN = 0.02
"""Seconds between two looks at the clock."""
PATIENCE = 60.0
"""Seconds in which the owner's first jobs must have their nodes."""


@dataclass(frozen=True)
class Taken:
    """One reclaim as it was played."""

    reclaim: Reclaim
    job_id: str
    submitted: float
    """Seconds since the trace's beginning, once sbatch had answered."""


class Owner:
    """Production: one job of a higher tier for each reclaim."""

    def __init__(self, nodes: Sequence[str], reclaims: Sequence[Reclaim], folder: Path) -> None:
        """Take all nodes, and wait until they are taken. ``folder``: where its jobs say when they have begun.

        Raises:
            LiverError: Slurm does not give them.
        """
        self._nodes, self._waiting, self._folder = nodes, list(reclaims), folder
        folder.mkdir(parents=True)
        self._first = [self._submit(node, "sleep 3600") for node in nodes]
        self.taken: list[Taken] = []
        self._begun = 0.0
        wait_until(lambda: all(self.started(job) for job in self._first), "production did not get its first nodes")

    def begin(self) -> float:
        """Begin the trace: all nodes are on offer from now on; returns when that was, seconds since the epoch."""
        self._begun = time.time()
        subprocess.run(["scancel", *self._first], check=True, timeout=60)
        return self._begun

    def play(self, seconds: float, turn: Callable[[], None]) -> float:
        """Play the trace to its end, ``turn`` in between; returns when it was over, seconds since the epoch."""
        while (now := time.time() - self._begun) < seconds:
            if self._waiting and self._waiting[0].at <= now:
                self._take(self._waiting.pop(0))
            turn()
            time.sleep(TURN)  # the pace of the replay
        return self._begun + seconds

    def _take(self, one: Reclaim) -> None:
        # What is left is counted where the job begins: it may have waited for its node.
        until = f"{self._begun + one.until:.3f}"
        rest = f"awk -v until={until} -v now=$(date +%s.%N) 'BEGIN {{ print (until > now ? until - now : 0) }}'"
        job_id = self._submit(self._nodes[one.node], f"sleep $({rest})")
        self.taken.append(Taken(one, job_id, time.time() - self._begun))

    def _submit(self, node: str, what: str) -> str:
        options = ("--partition=prod", "--nodes=1", f"--nodelist={node}", "--exclusive", "--time=120", "--no-requeue")
        script = f"date +%s.%N > {self._folder}/$SLURM_JOB_ID; {what}"
        command = ["sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=self._folder)
        return done.stdout.strip()

    def started(self, job_id: str) -> float | None:
        """Return when a job's first line ran, seconds since the epoch; None: it has not."""
        path = self._folder / job_id
        text = path.read_text() if path.exists() else ""
        return float(text) if text.endswith("\n") else None

    def document(self) -> list[dict[str, Any]]:
        """Make the document of what was played: ``delay_s`` is what production waited for its node."""
        rows = []
        for one in self.taken:
            started = self.started(one.job_id)
            delay = None if started is None else started - self._begun - one.submitted
            rows.append({**asdict(one.reclaim), "submitted": one.submitted, "delay_s": delay})
        return rows


def wait_until(holds: Callable[[], bool], failure: str, patience: float = PATIENCE) -> None:
    """Wait until something holds.

    Raises:
        LiverError: it does not in time.
    """
    if not until(holds, patience, TURN):
        raise LiverError(f"{failure} within {patience:.0f} s")
