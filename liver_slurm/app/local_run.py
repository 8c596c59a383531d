"""A whole run as plain processes of one machine: the same coordinator and workers as in a Slurm job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil

from liver_slurm.app.processes import say_cancelled
from liver_slurm.base import interrupts
from liver_slurm.base.errors import ControlError, ExitCode
from liver_slurm.config.load import save_job
from liver_slurm.config.schema import ComponentSection, JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import WorkerEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info, write_run_info
from liver_slurm.rundir.worker_names import guaranteed_prefix, worker_name
from liver_slurm.scheduler.local.process import start, worker_environment

POLL = 0.1
"""Seconds between looks at the processes."""
RESTARTS = 5
"""How often a coordinator that was killed or broke down is started again."""
GOODBYE = 15.0
"""Seconds that processes have to end once the coordinator has."""
HURRY = 2.0
"""Seconds that all have to end when the run is interrupted; a person waits."""


def run_local(
    config: JobConfig,
    run_dir: RunDir,
    workers: int,
    standbys: int,
    resizes: Sequence[tuple[int, Layout]] = (),
    resume: Path | None = None,
    on_progress: Callable[[], None] | None = None,
) -> int:
    """Run a job on this machine until it ends; call it from the main thread.

    SIGINT and SIGTERM cancel the run; its processes have a moment to end by themselves.

    Args:
        config: job of ``run_dir``, which :func:`liver_slurm.rundir.registry.create_run` has made.
        workers: guaranteed workers; they and ``standbys`` take the place of the job's Slurm resources.
        standbys: standby workers at most at a time.
        resizes: (step, layout) each, in the order of steps; training waits at the step until the layout is prepared.
            With any, the run is resized by nothing else than these and notices.
        resume: run directory whose newest checkpoint the run starts from.
        on_progress: called about ten times a second while the run lives.

    Returns:
        the coordinator's exit code, see :class:`ExitCode`.

    Raises:
        KeyboardInterrupt: a signal has cancelled it, and it is over.
    """
    save_job(_on_this_machine(config, workers, standbys), run_dir.job_file)
    if resume is not None:
        write_run_info(run_dir, msgspec.structs.replace(read_run_info(run_dir), resumed_from=str(resume)))
    interrupts.adopt_orphans()  # standbys outlive a coordinator that is killed
    before = frozenset(child.pid for child in psutil.Process().children())
    runner = _Runner(run_dir, [f"{step}:{layout}" for step, layout in resizes], on_progress, before)
    gpus = any(component.gpus_per_task for component in config.live.component)
    with interrupts.orderly():
        try:
            return runner.run(workers, standbys, gpus)
        except KeyboardInterrupt as error:
            runner.cancel(interrupts.number_of(error))
            raise
        finally:
            runner.end_all()


def _end_all(processes: Sequence[psutil.Process]) -> None:
    """Kill these processes and everything below them, and wait until they are gone."""
    doomed = {one.pid: one for process in processes for one in (process, *_descendants(process))}
    for process in doomed.values():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself in between
            process.kill()
    psutil.wait_procs(list(doomed.values()), timeout=GOODBYE)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _on_this_machine(config: JobConfig, workers: int, standbys: int) -> JobConfig:
    first = config.live.component[0] if config.live.component else ComponentSection()
    component = replace(first, nodes=1, tasks_per_node=workers)
    standby = replace(config.standby, max_jobs=standbys, nodes_per_job=1, tasks_per_node=1, unit=())
    return replace(config, live=replace(config.live, component=(component,)), standby=standby)


class _Runner:
    """The processes of one run, but for the standbys: those are the coordinator's."""

    def __init__(
        self, run_dir: RunDir, resizes: list[str], on_progress: Callable[[], None] | None, foreign: frozenset[int]
    ) -> None:
        """``foreign``: children of this process that are not the run's."""
        self._run_dir, self._resizes, self._on_progress, self._foreign = run_dir, resizes, on_progress, foreign
        self._next_reap = 0.0
        self._coordinator: subprocess.Popen[bytes] | None = None
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._untold: dict[str, str] = {}

    def cancel(self, number: signal.Signals) -> None:
        """End the run: its coordinator tells everybody, if it can; the event log says that it was cancelled."""
        if self._coordinator is not None:
            self._coordinator.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is killed, with the others
                self._coordinator.wait(timeout=HURRY)
        self.end_all()
        say_cancelled(self._run_dir, f"cancelled by {number.name}")

    def end_all(self) -> None:
        """Kill what is left of the run's processes; of standbys, those whose coordinator was killed."""
        _end_all([child for child in psutil.Process().children() if child.pid not in self._foreign])

    def run(self, workers: int, standbys: int, gpus: bool) -> int:
        """Start everything, wait for the coordinator's word, let the rest end by itself."""
        self._start_coordinator()
        for index in range(workers):
            name = worker_name(guaranteed_prefix(), index)
            self._start_worker(name, worker_environment(index, workers + standbys, gpus))
        code = self._wait()
        psutil.wait_procs([psutil.Process(process.pid) for process in self._workers.values()], timeout=GOODBYE)
        return code

    def _wait(self) -> int:
        restarts = 0
        while True:
            assert self._coordinator is not None
            code = self._coordinator.poll()
            if code is None:
                self._watch_workers()
                self._reap_adopted()
                if self._on_progress is not None:
                    self._on_progress()
                time.sleep(POLL)
            elif code in range(ExitCode.BROKE_DOWN):
                return code
            elif restarts >= RESTARTS:
                return ExitCode.FAILED
            else:
                restarts += 1
                self._start_coordinator()

    def _start_coordinator(self) -> None:
        resizes = [part for text in self._resizes for part in ("--resize", text)]
        arguments = [str(self._run_dir.path), "--source", "local", *resizes]
        log = self._run_dir.logs / "coordinator.log"
        # If this process is killed, the coordinator cancels the run as if it had been asked to.
        self._coordinator = start("liver_slurm.coordinator", arguments, log, {"OMP_NUM_THREADS": "1"}, signal.SIGTERM)

    def _start_worker(self, name: str, environment: dict[str, str]) -> None:
        arguments = [str(self._run_dir.path), "--role", "live", "--name", name, "--restart"]
        log = self._run_dir.worker_log(name)
        self._workers[name] = start("liver_slurm.worker", arguments, log, environment, signal.SIGKILL)

    def _reap_adopted(self) -> None:
        """Take the exit codes of standbys that became children of this process when their coordinator was killed."""
        if time.monotonic() < self._next_reap:
            return
        self._next_reap = time.monotonic() + 1.0
        started = {process.pid for process in self._workers.values()} | self._foreign
        for child in psutil.Process().children():
            is_coordinator = self._coordinator is not None and child.pid == self._coordinator.pid
            if child.pid not in started and not is_coordinator and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)

    def _watch_workers(self) -> None:
        """Tell the coordinator of guaranteed workers that ended, which it would otherwise learn from their silence."""
        for name, process in list(self._workers.items()):
            code = process.poll()
            if code is not None:
                del self._workers[name]
                self._untold[name] = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        for name, reason in list(self._untold.items()):
            try:
                request(self._run_dir, WorkerEnded(worker=name, reason=reason, again=False), timeout=1.0)
            except ControlError:
                return  # it is starting, or ending: asked again at the next look
            del self._untold[name]
