"""What a run offers to the world outside while its coordinator lives: word of what becomes of it, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from liver_slurm.config.schema import JobConfig
from liver_slurm.observability.exporter import Exporter, Figures
from liver_slurm.observability.life import Life
from liver_slurm.observability.notifier import Notifier, RunName
from liver_slurm.observability.status import RunStatus
from liver_slurm.rundir.event_log import EventLog, read_documents
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import RunInfo


class Outside:
    """Hears all events of a run, tells some of them, and serves its figures, as its job file says."""

    def __init__(self, config: JobConfig, run_dir: RunDir, info: RunInfo) -> None:
        self._config, self._run_dir = config, run_dir
        self._notifier = Notifier(
            config.notify,
            RunName(info.name, run_dir.path, info.job_id),
            Life(read_documents(run_dir.events)),
            lambda event: self.events.append(event),
        )
        self.events = EventLog(run_dir.events, self._notifier.hear)
        """The run's event log; what is written to it is heard."""
        self._exporter: Exporter | None = None

    def serve(self, status: Callable[[], RunStatus], host: str) -> None:
        """Begin to offer the run's figures.

        Args:
            status: what the coordinator says now; it is called in other threads.
            host: address to bind to where the job file names no interface.
        """
        config = self._config.prometheus
        if config.port is not None or config.textfile is not None:
            figures = Figures(self._run_dir, status, self._told)
            self._exporter = Exporter(figures, config, self._run_dir, host)

    def close(self) -> None:
        """Tell what is still to be told, for a bounded time, and offer nothing any more."""
        self._notifier.close()
        if self._exporter is not None:
            self._exporter.close()

    def _told(self) -> Mapping[str, int]:
        notify = self._config.notify
        if not notify.command and notify.webhook is None:
            return {}
        return {"sent": self._notifier.sent, "failed": self._notifier.failed}
