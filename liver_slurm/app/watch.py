"""A run, watched: its files are read, and its coordinator is asked in a thread, so that nobody waits for an answer."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import TracebackType

import msgspec

from liver_slurm.app import processes
from liver_slurm.base.errors import ControlError, LiverError, first_line
from liver_slurm.observability.history import RunHistory
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.status import RunStatus, WorkerStatus, from_status
from liver_slurm.observability.top_view import Contact, TopView, top_view
from liver_slurm.rundir.paths import RunDir

KEEP = 2000
"""Newest steps that are kept."""
ASK = 1.0
"""Seconds between two questions to the coordinator."""
PATIENCE = 3.0
"""Seconds that an answer may take."""
SILENT = 20.0
"""Seconds in which a run has written nothing, after which it is lost if none of its processes is left: a coordinator
that was killed is started again, and workers train on meanwhile."""
LOOK = 15.0
"""Seconds between two looks for the run's processes while the coordinator does not answer; each may be a query to
slurmctld."""


class Watch:
    """Makes a :class:`TopView` of a run whenever it is asked to, without waiting for anybody.

    In the ``with`` block the coordinator is asked again and again; :meth:`ask` asks it once.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.files = RunFiles(run_dir, KEEP)
        self.history = RunHistory()
        self._lock = threading.Lock()
        self._contact = Contact(since=time.time())
        self._answer: RunStatus | None = None
        self._next_look = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="ask-coordinator", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The thread is not waited for: an answer may take seconds, and nothing is left behind if none comes.
        self._stop.set()

    def view(self) -> TopView:
        """Return the run as of now: its files are read, the last answer is at hand."""
        for document in self.files.refresh():
            self.history.add(document)
        with self._lock:
            answer, contact = self._answer, self._contact
        status = merged(self.files, answer, contact)
        return top_view(
            time.time(), self.files.created, self.files.config, status, self.history, list(self.files.newest), contact
        )

    def ask(self) -> None:
        """Ask the coordinator once, and look for the run's processes if it does not answer."""
        from liver_slurm.protocol.client import request
        from liver_slurm.protocol.messages import StatusRequest

        try:
            reply = request(self.run_dir, StatusRequest(), PATIENCE)
            answer = from_status(reply.result)
        except (ControlError, msgspec.ValidationError) as error:
            self._unanswered(str(error))
            return
        with self._lock:
            self._answer, self._contact = answer, Contact(since=time.time(), answered=True)

    def _unanswered(self, error: str) -> None:
        contact = replace(self._contact, error=error)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK
            found, state = self._look()
            contact = replace(contact, found=found, state=state)
        with self._lock:
            self._contact = contact

    def _look(self) -> tuple[str, str]:
        """Look for the run's processes; returns what was found, and the run's state if none is left."""
        try:
            found = processes.find(self.run_dir)
        except LiverError as error:
            return str(error), ""
        return found.why, found.state if found.alive is False and self._silent() else ""

    def _silent(self) -> bool:
        """Return whether the run has written nothing for a while."""
        written = [file.stat().st_mtime for file in (self.run_dir.events, self.run_dir.metrics) if file.exists()]
        return time.time() - max(written, default=0.0) > SILENT

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            try:
                self.ask()
            except Exception as error:  # noqa: BLE001 - a thread's edge: it is shown, and asked again
                with self._lock:
                    self._contact = replace(self._contact, error=first_line(error))
            self._stop.wait(ASK)


def merged(files: RunFiles, answer: RunStatus | None, contact: Contact) -> RunStatus:
    """Put together what the run's files and its coordinator say.

    While the coordinator is away its last answer still tells where workers are; what changes is from the files. The end
    of a run is in its files only.
    """
    told = files.status()
    if files.over:
        return told
    if contact.state:
        return msgspec.structs.replace(told, state=contact.state, reason=f"it never said how it ended: {contact.found}")
    if answer is None:
        return msgspec.structs.replace(told, reason=told.reason or contact.found)
    if contact.error:
        known = {worker.worker: worker for worker in [*answer.workers, *answer.standbys]}
        return msgspec.structs.replace(
            told,
            workers=[_placed(worker, known) for worker in told.workers],
            standbys=[_placed(worker, known) for worker in told.standbys],
            standby_jobs=answer.standby_jobs,
        )
    names = ("loss", "consumed_samples", "tokens_per_s", "tflops", "mfu", "validation")
    from_files = {name: getattr(told, name) for name in names}
    identity = {name: getattr(told, name) for name in ("run_id", "name", "job_id", "run_dir")}
    return msgspec.structs.replace(answer, **identity, **from_files, step=max(answer.step, told.step))


def _placed(worker: WorkerStatus, known: dict[str, WorkerStatus]) -> WorkerStatus:
    """Add where a worker is, as the coordinator said when it was last heard of."""
    before = known.get(worker.worker)
    if before is None:
        return worker
    return msgspec.structs.replace(worker, host=before.host, job_id=before.job_id, device=before.device)
