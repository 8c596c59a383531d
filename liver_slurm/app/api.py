"""The Python API: the command line's verbs as functions and methods.

Errors are those of :mod:`liver_slurm.base.errors`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from msgspec.structs import replace

from liver_slurm.app import processes, runs
from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, ControlError, LiverError
from liver_slurm.config.load import check_job, load_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.status import RunStatus
from liver_slurm.observability.summary import PREPARED
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import CancelRequest, CheckpointRequest, FromClient, ResizeRequest, StatusRequest
from liver_slurm.rundir.event_log import follow_documents, read_documents
from liver_slurm.rundir.events import Document
from liver_slurm.rundir.metrics import StepMetrics, read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import check_beginning, create_run, find_run, read_run_info, record_run

if TYPE_CHECKING:
    from liver_slurm.scheduler.slurm.submit import Submission


def submit(job: JobConfig | str | Path, /, *, resume: str | Path | None = None, **sections: Any) -> Job:
    """Submit a job file, or a config made in Python, to Slurm.

    Args:
        resume: run (directory, job id or name) whose newest checkpoint the new run starts from.
        sections: overrides, such as ``train={"steps": 500}``.

    Raises:
        BadInput: the job is at fault; one line for each thing that is wrong.
        ClusterError: Slurm refused it, or there is no Slurm here. In either case nothing is left behind.
    """
    if isinstance(job, JobConfig):
        return submit_config(check_job(job, sections=sections), resume)
    return submit_config(load_job(job, sections=sections), resume)


def submit_config(config: JobConfig, resume: str | Path | None = None) -> Job:
    """Submit a validated config; the rest as :func:`submit`."""
    from liver_slurm.policy import engine
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.submit import Submission

    engine.check(config.standby.policy, config)
    submission = Submission.for_cluster(config, connect())
    return _create(submission.config, resume, submission.submit)


def prepare_config(config: JobConfig, resume: str | Path | None = None) -> Job:
    """Make a run directory with the batch script in it and submit nothing: for sbatch by hand. As :func:`submit`."""
    submission = _by_hand(config)
    return _create(submission.config, resume, submission.write)


def check_config(config: JobConfig, resume: str | Path | None = None) -> Submission:
    """Check of a validated config what else needs no cluster: its policy, whether a batch script can say it, and the
    checkpoint that it begins with.

    Raises:
        BadInput: the job is at fault; one line for each thing that is wrong.
    """
    submission = _by_hand(config)
    check_beginning(config, find_run(str(resume)) if resume is not None else None)
    return submission


def _by_hand(config: JobConfig) -> Submission:
    from liver_slurm.policy import engine
    from liver_slurm.scheduler.slurm.submit import Submission

    engine.check(config.standby.policy, config)
    return Submission.by_hand(config)


def _create(config: JobConfig, resume: str | Path | None, hand_on: Callable[[RunDir], str | None]) -> Job:
    """Make a run directory, which ``hand_on`` gets; what that returns is the job's id."""
    from liver_slurm.scheduler.slurm.submit import SubmissionUnknown

    with interrupts.orderly():
        run_dir = create_run(config, find_run(str(resume)) if resume is not None else None)
        try:
            job_id = hand_on(run_dir) or ""
        except SubmissionUnknown:
            raise
        except BaseException:
            shutil.rmtree(run_dir.path)  # it is ours, new, and nobody knows of it
            raise
        record_run(run_dir, job_id)
    return Job(run_dir)


def find(text: str | Path, *, only: bool = False) -> Job:
    """Return the run that a job id, a name or a run directory names; of several, the newest of those that are alive.

    Args:
        only: refuse where several are alive, for what changes a run.

    Raises:
        BadInput: there is none, or more than one.
    """
    return Job(runs.find_run(str(text), only=only))


class Job:
    """One run, on Slurm or as plain processes."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        """Where everything of the run lies."""
        self.job_id = read_run_info(run_dir).job_id
        """Slurm's id; empty for plain processes."""

    def __repr__(self) -> str:
        return f"Job({self.job_id or 'plain processes'}, {str(self.run_dir.path)!r})"

    def status(self, timeout: float = 5.0) -> dict[str, Any]:
        """Return what the run is doing: at least ``state``, ``step``, ``generation``, ``layout``, ``workers``,
        ``standbys``, ``last_reconfiguration`` and ``reason``; ``source`` says whether the coordinator or the run's
        files said so.

        Args:
            timeout: seconds to wait for the coordinator.
        """
        files = RunFiles(self.run_dir)
        files.refresh()
        if files.over or not self.run_dir.address_file.exists():
            return self._from_files(files).document()
        try:
            result = self._request(StatusRequest(), timeout)
        except ControlError as error:
            return replace(self._from_files(files), coordinator=str(error)).document()
        status = files.status()
        metrics: dict[str, Any] = {"loss": status.loss, "consumed_samples": status.consumed_samples}
        if status.validation is not UNSET:
            metrics["validation"] = status.validation
        return {**result, **files.identity(), **metrics, **files.rates(), "source": "coordinator"}

    def _from_files(self, files: RunFiles) -> RunStatus:
        status = replace(files.status(), source="files")
        if files.over:
            return status
        found = processes.find(self.run_dir)
        if found.state == PREPARED:
            return replace(status, state=PREPARED, reason=found.why)
        if found.alive is False:
            return replace(status, state=found.state, reason=processes.why_silent(self.run_dir, found))
        return replace(status, reason=status.reason or found.why)

    def events(self, follow: bool = False) -> Iterator[Document]:
        """Return the run's events; with ``follow`` also those to come, until the run is over."""
        if not follow:
            return read_documents(self.run_dir.events)
        return follow_documents(self.run_dir.events, stop=self.end_watch())

    def end_watch(self) -> Callable[[], bool]:
        """Return a function that says whether the run is over; cheap, and meant to be called several times a second."""
        return _End(self.run_dir).reached

    def metrics(self) -> Iterator[StepMetrics]:
        """Return the run's metrics, one entry a step."""
        return read_metrics(self.run_dir.metrics)

    def resize(
        self, layout: str | None = None, workers: int | None = None, *, give_back: bool = False
    ) -> dict[str, Any]:
        """Ask for a layout, or for the best one for a number of workers; returns what was accepted.

        Args:
            layout: such as ``tp2pp1dp2``.
            workers: of the next world.
            give_back: workers of the guaranteed job that are left out leave, and nodes that become free go back to
                Slurm for good; what was accepted says how many.

        Raises:
            BadInput: neither or both given, not a layout, or one that the run cannot take.
            ControlError: the coordinator does not answer.
        """
        if (layout is None) == (workers is None):
            raise BadInput("resize: give either a layout or a number of workers")
        if workers is not None and workers < 1:
            raise BadInput(f"resize: {workers} workers is not allowed; allowed: >= 1")
        try:
            text = str(Layout.parse(layout)) if layout is not None else ""
        except ValueError as error:
            raise BadInput(f"resize: {error}") from None
        return self._ask(ResizeRequest(layout=text, workers=workers or 0, give_back=give_back))

    def checkpoint(self) -> dict[str, Any]:
        """Ask for a checkpoint; the event log says when it is written."""
        return self._ask(CheckpointRequest())

    def cancel(self) -> str:
        """End the run and all that it started, and nothing else; returns how.

        The coordinator is asked, so that the run's files say what became of it. It may be away, or hang: on Slurm every
        job of the run is then ended, also one that is submitted this very moment. Of a run that is over, only jobs that
        are left are ended.
        """
        files = RunFiles(self.run_dir)
        files.refresh()
        over = files.over
        how = f"it is over already: {files.summary.state}" if over else self._ask_to_end()
        if not self.job_id:
            return how or processes.end(self.run_dir)
        swept = processes.end(self.run_dir)
        return f"{how}; {swept}" if how else swept

    def _ask_to_end(self) -> str:
        """Ask the coordinator to end the run; returns that it does, or nothing if it does not answer."""
        if not self.run_dir.address_file.exists():
            return ""
        try:
            self._request(CancelRequest())
        except ControlError:
            return ""
        except BadInput as error:  # it says that the run is over
            return str(error)
        return "its coordinator ends it"

    def wait(self, timeout: float | None = None, poll: float = 0.5) -> dict[str, Any]:
        """Wait until the run is over; returns its last status.

        Raises:
            LiverError: it is not over after ``timeout`` seconds.
        """
        over = self.end_watch()
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while not over():
            if time.monotonic() >= deadline:
                raise LiverError(f"{self.run_dir.path.name} is not over after {timeout:g} s; it goes on")
            time.sleep(poll)
        return self.status()

    def _ask(self, message: FromClient) -> dict[str, Any]:
        """Ask for something that only a run that goes on can do."""
        files = RunFiles(self.run_dir)
        files.refresh()
        if files.over:
            raise BadInput(f"{self.run_dir.path.name} is over: {files.summary.state}")
        return self._request(message)

    def _request(self, message: FromClient, timeout: float = 5.0) -> dict[str, Any]:
        from liver_slurm.protocol.client import request

        if not self.job_id and (found := processes.find(self.run_dir)).alive is False:
            raise ControlError(found.why)  # it costs nothing to see, and no answer would come
        reply = request(self.run_dir, message, timeout)
        if not reply.ok:
            raise BadInput(reply.error)
        return reply.result


class _End:
    """Looks whether a run is over: its own word is cheap and asked often, its processes seldom."""

    INTERVAL = 5.0

    def __init__(self, run_dir: RunDir) -> None:
        self._files = RunFiles(run_dir)
        self._next_look = time.monotonic() + self.INTERVAL
        self._missed = False

    def reached(self) -> bool:
        """Return whether it is over, or twice in a row nothing of it was alive."""
        self._files.refresh()
        if self._files.over:
            return True
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + self.INTERVAL
        # Twice: its last word may be on its way through a shared file system.
        missed, self._missed = self._missed, processes.find(self._files.run_dir).alive is False
        return missed and self._missed
