"""Looking at a run through its files, again and again, at the price of what is new in them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from liver_slurm.base.jsonl import LineReader
from liver_slurm.config.load import read_job
from liver_slurm.observability.status import RunStatus
from liver_slurm.observability.summary import OVER, RunSummary
from liver_slurm.observability.throughput import RECENT, recent_rates
from liver_slurm.rundir.metrics import StepMetrics, recent_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info


class RunFiles:
    """One run, watched through its files."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.steps = read_job(run_dir.job_file).train.steps
        self._info = read_run_info(run_dir)
        self.summary = RunSummary()
        self.recent: list[StepMetrics] = []
        self._events = LineReader(run_dir.events)

    def refresh(self) -> list[dict[str, Any]]:
        """Take in what was written since the last time; returns the new events."""
        documents = [line for line in self._events.read() if "event" in line]
        for document in documents:
            self.summary.add(document)
        self.recent = recent_metrics(self.run_dir.metrics, RECENT)
        return documents

    @property
    def created(self) -> float:
        """When the run directory was made, seconds since the epoch."""
        return self._info.created

    @property
    def over(self) -> bool:
        """Whether the run has ended, as of the last refresh."""
        return self.summary.state in OVER

    def status(self) -> RunStatus:
        """The run's status as of the last refresh, with its names and its newest metrics."""
        last = self.recent[-1] if self.recent else None
        return msgspec.structs.replace(self.summary.status(self.steps, last), **self.identity(), **self.rates())

    def identity(self) -> dict[str, str]:
        """Fields of the status that say which run it is."""
        info = self._info
        return {"run_id": info.run_id, "name": info.name, "job_id": info.job_id, "run_dir": str(self.run_dir.path)}

    def rates(self) -> dict[str, float]:
        """Fields of the status that say how fast the last steps were; what is not known is left out."""
        return {name: rate for name, rate in asdict(recent_rates(self.recent)).items() if rate is not None}
