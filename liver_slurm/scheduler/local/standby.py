"""Standby jobs as plain processes of this machine, each a job of one worker."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil

from liver_slurm.base.files import replace_file
from liver_slurm.config.load import read_job
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.worker_names import local_standby_name
from liver_slurm.scheduler.local.process import start, worker_environment
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob

END_GRACE = 5.0
"""Seconds that a standby has to end before it is killed."""


@dataclass(frozen=True)
class _Started:
    """A process that was started once; its creation time tells it from another that got its number."""

    job_id: str
    pid: int
    created: float
    index: int
    """Its number among the machine's workers."""

    def process(self) -> psutil.Process | None:
        """Return the process, if it lives."""
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


class LocalStandbys:
    """:class:`liver_slurm.scheduler.ports.StandbyProvider` of up to ``count`` processes at a time.

    What it started is written down in the run directory: the standbys outlive a coordinator that is killed, and the
    next one must know them.
    """

    def __init__(self, run_dir: RunDir, count: int) -> None:
        self._run_dir, self._count = run_dir, count
        self._file = run_dir.standby / "local.json"
        self._started = [_Started(**entry) for entry in json.loads(self._file.read_text())] if self._has_file else []
        components = read_job(run_dir.job_file).live.component
        self._gpus = any(component.gpus_per_task for component in components)
        self._live = sum(component.tasks_per_node for component in components)

    @property
    def _has_file(self) -> bool:
        return self._file.exists()

    def observe(self) -> CapacitySnapshot:
        _reap()
        jobs = tuple(StandbyJob(one.job_id, "running", (os.uname().nodename,)) for one in self._alive())
        return CapacitySnapshot(time=time.time(), jobs=jobs, room=(Headroom(0, "", self._count - len(jobs)),))

    def launch(self, count: int, unit: int, partition: str, after: float = 0.0) -> list[str]:
        """Start standbys as processes; there is one unit, and one place for it."""
        return [self._launch() for _ in range(count)]

    def release(self, job_id: str) -> None:
        _end([process for one in self._started if one.job_id == job_id and (process := one.process()) is not None])

    def defer(self, job_ids: Sequence[str], seconds: float) -> None:
        """Do nothing: no process waits in a queue."""

    def close(self) -> None:
        _end([process for one in self._started if (process := one.process()) is not None])

    def _alive(self) -> list[_Started]:
        return [one for one in self._started if one.process() is not None]

    def _launch(self) -> str:
        name = local_standby_name(len(self._started))
        arguments = [str(self._run_dir.path), "--role", "standby", "--name", name]
        taken = {one.index for one in self._alive()}
        index = next(free for free in itertools.count(self._live) if free not in taken)
        environment = worker_environment(index, self._live + self._count, self._gpus)
        # Not tied to its parent, the coordinator: a coordinator may be killed and training goes on. The runner adopts
        # and ends what is left.
        child = start("liver_slurm.worker", arguments, self._run_dir.worker_log(name), environment, None)
        self._started.append(_Started(name, child.pid, psutil.Process(child.pid).create_time(), index))
        child.returncode = 0  # subprocess must not wait for it: _reap does
        replace_file(self._file, json.dumps([asdict(one) for one in self._started]).encode())
        return name


def _reap() -> None:
    """Take the exit codes of children that ended; nothing else in a coordinator has children."""
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)
    _gone, left = psutil.wait_procs(processes, timeout=END_GRACE)
    for process in left:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=END_GRACE)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # ended by itself in between
