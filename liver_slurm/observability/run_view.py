"""Looking at a run through its files, again and again, at the price of what is new in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec

from liver_slurm.base.jsonl import LineReader
from liver_slurm.config.load import read_job
from liver_slurm.observability.status import RunStatus
from liver_slurm.observability.summary import OVER, RunSummary
from liver_slurm.observability.throughput import RECENT, recent_rates
from liver_slurm.rundir.metrics import StepMetrics, step_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info
from liver_slurm.rundir.validation import last_validation

LINE_BYTES = 512
"""More than a line of the metrics has."""


class RunFiles:
    """One run, watched through its files."""

    def __init__(
        self, run_dir: RunDir, keep: int = RECENT, heard: Callable[[StepMetrics], object] = lambda step: None
    ) -> None:
        """
        Args:
            run_dir: of the run.
            keep: newest steps that are kept at most.
            heard: is told each step that is read, those of a file that was replaced once more.
        """
        self.run_dir, self._heard = run_dir, heard
        self.config = read_job(run_dir.job_file)
        self.steps = self.config.train.steps
        self._info = read_run_info(run_dir)
        self.summary = RunSummary()
        self.newest: deque[StepMetrics] = deque(maxlen=keep)
        """The newest steps, in order; each once, as it was trained last."""
        self._events = LineReader(run_dir.events)
        self._metrics = LineReader(run_dir.metrics, tail=keep * LINE_BYTES)

    def refresh(self) -> list[dict[str, Any]]:
        """Take in what was written since the last time; returns the new events."""
        documents = [line for line in self._events.read() if "event" in line]
        for document in documents:
            self.summary.add(document)
        for step in map(step_metrics, self._metrics.read()):
            while self.newest and self.newest[-1].step >= step.step:
                self.newest.pop()
            self.newest.append(step)
            self._heard(step)
        return documents

    @property
    def recent(self) -> list[StepMetrics]:
        """The steps that rates are of."""
        return list(self.newest)[-RECENT:]

    @property
    def created(self) -> float:
        """When the run directory was made, seconds since the epoch."""
        return self._info.created

    @property
    def over(self) -> bool:
        """Whether the run has ended, as of the last refresh."""
        return self.summary.state in OVER

    def status(self) -> RunStatus:
        """Return the run's status as of the last refresh, with its names and its newest metrics."""
        last = self.newest[-1] if self.newest else None
        known = {**self.identity(), **self.rates(), "validation": self.validation()}
        return msgspec.structs.replace(self.summary.status(self.steps, last), **known)

    def validation(self) -> dict[str, Any] | msgspec.UnsetType:
        """Return the status's field of that name."""
        last = last_validation(self.run_dir.validations) if self.config.validation.wanted else None
        return msgspec.to_builtins(last) if last is not None else msgspec.UNSET

    def identity(self) -> dict[str, str]:
        """Return the fields of the status that say which run it is."""
        info = self._info
        return {"run_id": info.run_id, "name": info.name, "job_id": info.job_id, "run_dir": str(self.run_dir.path)}

    def rates(self) -> dict[str, float]:
        """Return the fields of the status that say how fast the last steps were; what is not known is left out."""
        return {name: rate for name, rate in asdict(recent_rates(self.recent)).items() if rate is not None}
