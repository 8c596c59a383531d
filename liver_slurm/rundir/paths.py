"""Where everything lies in a run directory. The only place that knows its file names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from liver_slurm.rundir.worker_names import place_of


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run directory; nothing here touches the disk."""

    path: Path

    @property
    def job_file(self) -> Path:
        """The resolved job, JSON; what workers and the coordinator read."""
        return self.path / "job.json"

    @property
    def run_file(self) -> Path:
        """``{"run_id", "name", "created", "job_id", "resumed_from"}``, JSON."""
        return self.path / "run.json"

    @property
    def secrets(self) -> Path:
        """CURVE keys of the control channel: folder 0700, files 0600."""
        return self.path / "secrets"

    @property
    def address_file(self) -> Path:
        """``{"host", "port", "epoch", "pid"}`` of the coordinator, JSON, replaced atomically at each of its starts."""
        return self.path / "coordinator.json"

    @property
    def prometheus_targets(self) -> Path:
        """Where the coordinator serves its figures, JSON as Prometheus' file_sd reads it; there while it does."""
        return self.path / "prometheus.json"

    @property
    def tensorboard(self) -> Path:
        """What ``liver-slurm export tensorboard`` has written."""
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Files of Weights & Biases, if ``liver-slurm export wandb`` has written any."""
        return self.path / "wandb"

    @property
    def fence_file(self) -> Path:
        """The fencing token: which start of the guaranteed job may act, JSON."""
        return self.path / "claim.json"

    @property
    def metrics(self) -> Path:
        """A line a step."""
        return self.path / "metrics.jsonl"

    @property
    def validations(self) -> Path:
        """A line a validation; there is none without validation."""
        return self.path / "validation.jsonl"

    @property
    def events(self) -> Path:
        """A line an event."""
        return self.path / "events.jsonl"

    @property
    def chaos(self) -> Path:
        """A line a fault that ``liver-slurm chaos`` did to the run, and what became of it."""
        return self.path / "chaos.jsonl"

    @property
    def journal(self) -> Path:
        """The coordinator's journal."""
        return self.path / "journal.sqlite"

    @property
    def logs(self) -> Path:
        """``coordinator.log``, ``WORKER.log``, Slurm's own output."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """``step-00000100/`` each."""
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        """Prepared data, where the job file names text: ``text.bin``, ``text.idx``."""
        return self.path / "data"

    @property
    def batch_script(self) -> Path:
        """The guaranteed job's batch script, as it was submitted."""
        return self.path / "live.sh"

    @property
    def standby(self) -> Path:
        """submitit's folder."""
        return self.path / "standby"

    def worker_log(self, worker: str) -> Path:
        """Log of one worker, and of all that were before it in its place."""
        return self.logs / f"{place_of(worker)}.log"
