"""Whether a run's processes are alive, and ending them, when its coordinator cannot be asked."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from liver_slurm.base.errors import BadInput, ClusterError, ControlError, ExitCode, LiverError
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.summary import LOST, PREPARED
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import RunEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import RunInfo, read_run_info

if TYPE_CHECKING:
    import psutil

    from liver_slurm.scheduler.slurm.records import JobInfo

QUERY_TIMEOUT = 3.0
"""Seconds that one Slurm command may take: people wait for the answer."""
_TAIL = 1 << 14
"""Bytes of a log in which its last error is looked for."""


@dataclass(frozen=True)
class Found:
    """What a look at the run's processes found."""

    alive: bool | None
    """None: it cannot be told from here."""
    why: str
    state: str = LOST
    """State of the run if it is not alive: whoever cancelled the job before its coordinator ran ended it well. Of one
    that was prepared, and that nobody has started, :data:`PREPARED`."""


def find(run_dir: RunDir) -> Found:
    """Look for the run's Slurm job, or for its coordinator's process on this machine."""
    return find_all([run_dir])[run_dir]


def find_all(run_dirs: Sequence[RunDir]) -> dict[RunDir, Found]:
    """Find as :func:`find` does, for many runs with one question to Slurm."""
    job_ids = {run_dir: read_run_info(run_dir).job_id for run_dir in run_dirs}
    of_jobs = _find_jobs([job_id for job_id in job_ids.values() if job_id])
    return {run_dir: of_jobs[job_id] if job_id else _find_process(run_dir) for run_dir, job_id in job_ids.items()}


def why_silent(run_dir: RunDir, found: Found) -> str:
    """Say why a run that is not alive has no outcome, with the last error that its coordinator has logged."""
    told = f"it never said how it ended: {found.why}"
    try:
        with (run_dir.logs / "coordinator.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return told
    errors = [match[1] for line in lines if (match := re.match(r"\S+ \S+ ERROR (.+)", line))]
    return f"{told}; its coordinator's last error: {errors[-1]}" if errors else told


def end(run_dir: RunDir) -> str:
    """End everything of a run, whatever its coordinator does about it; returns what was done.

    On Slurm that is every job that carries the run's mark, and it returns when none is left.

    Raises:
        ClusterError: Slurm does not answer.
        LiverError: plain processes that are not on this machine.
        BadInput: it was prepared, and nobody has started it.
    """
    info = read_run_info(run_dir)
    if not info.job_id and (found := _find_process(run_dir)).state == PREPARED:
        raise BadInput(f"{run_dir.path.name} is not going on: {found.why}")
    return _end_jobs(run_dir, info) if info.job_id else _end_processes(run_dir)


def _find_jobs(job_ids: Sequence[str]) -> dict[str, Found]:
    if not job_ids:
        return {}
    from liver_slurm.scheduler.slurm.connect import connect

    try:
        jobs = connect(timeout=QUERY_TIMEOUT).jobs(job_ids)
    except ClusterError as error:
        return dict.fromkeys(job_ids, Found(None, str(error)))
    return {job_id: _judge(job_id, [job for job in jobs if job.leader == job_id]) for job_id in job_ids}


def _judge(job_id: str, components: Sequence[JobInfo]) -> Found:
    left = [job for job in components if not job.is_over]
    if left:
        waiting = f"job {job_id} waits in the queue: {left[0].reason or 'no reason given'}"
        return Found(True, waiting if left[0].state == "PENDING" else "")
    if not components:
        return Found(False, f"job {job_id} is unknown to Slurm by now")
    state = components[0].state
    return Found(False, f"job {job_id} ended {state}", "cancelled" if state == "CANCELLED" else LOST)


def _end_jobs(run_dir: RunDir, info: RunInfo) -> str:
    from liver_slurm.scheduler.slurm.connect import connect
    from liver_slurm.scheduler.slurm.ownership import end_jobs_of_run

    ended, left = end_jobs_of_run(connect(), run_dir, info.name, info.job_id)
    if not left:
        say_cancelled(run_dir, "cancelled on request")
    if not ended:
        return "no job of it was left"
    told = f"ended job{'s' if len(ended) > 1 else ''} {', '.join(ended)}"
    return f"{told}; Slurm is still ending {', '.join(left)}" if left else told


def say_cancelled(run_dir: RunDir, reason: str) -> None:
    """Write into the run's events that it was cancelled, unless they say how it ended: no coordinator is left that
    could, because it waited in the queue, or was ended before it came to that.
    """
    files = RunFiles(run_dir)
    files.refresh()
    if files.over:
        return
    status = files.status()
    log = EventLog(run_dir.events)
    log.append(
        RunEnded(
            generation=status.generation,
            outcome="cancelled",
            exit_code=ExitCode.CANCELLED,
            reason=reason,
            step=status.step,
        )
    )
    log.close()


def _find_process(run_dir: RunDir) -> Found:
    import psutil

    from liver_slurm.rundir import address

    if run_dir.batch_script.exists() and not run_dir.events.exists() and not run_dir.address_file.exists():
        return Found(None, f"it is prepared, and nobody has started it: sbatch {run_dir.batch_script}", PREPARED)
    try:
        where = address.read(run_dir.address_file)
        written = run_dir.address_file.stat().st_mtime
    except (ControlError, OSError) as error:
        return Found(None, str(error))
    if where.host not in (socket.gethostname(), "127.0.0.1", "localhost"):
        return Found(None, f"its coordinator is on {where.host}")
    try:
        # A process that began after the address was written only has the number of the one that wrote it.
        alive = psutil.Process(where.pid).create_time() <= written + 1.0
    except psutil.NoSuchProcess:
        alive = False
    return Found(alive, "" if alive else f"its coordinator, process {where.pid}, is gone")


def _end_processes(run_dir: RunDir) -> str:
    import psutil

    ended = []
    for process in _own_processes(run_dir):
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
        ended.append(process.pid)
    if not ended:
        raise LiverError(f"no process of {run_dir.path} is on {socket.gethostname()}; cancel it where it was started")
    return f"its coordinator does not answer; told {len(ended)} of its processes to end"


def _own_processes(run_dir: RunDir) -> Iterator[psutil.Process]:
    """Yield our Python processes that were started with this run directory as an argument."""
    import psutil

    for process in psutil.process_iter(["pid", "uids", "cmdline"]):
        uids, arguments = process.info["uids"], process.info["cmdline"] or []
        ours = uids is not None and uids.real == os.getuid() and process.pid != os.getpid()
        if ours and str(run_dir.path) in arguments and any("liver_slurm" in argument for argument in arguments):
            yield process
