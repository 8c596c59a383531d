"""Start of a worker process: under srun in the guaranteed job, as a task of a standby job, or as a plain process."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from liver_slurm.base.errors import LAST_WORD, REFUSED, BadInput, first_line
from liver_slurm.base.imports import quick_imports
from liver_slurm.base.open_files import allow_many_files
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.trust import deny_writing_to_others
from liver_slurm.rundir.worker_names import Role, guaranteed_prefix, standby_prefix, worker_name
from liver_slurm.worker.signals import signal_pipe, started, while_starting

if TYPE_CHECKING:
    import torch

    from liver_slurm.config.schema import JobConfig
    from liver_slurm.engine.api import Engine


def standby_main(run_dir: str) -> None:
    """Run one task of a standby job; does not return."""
    main(Path(run_dir), "standby", task_name("standby"))


def task_name(role: Role, first: str | None = None) -> str:
    """Name of this Slurm task's worker, unique in the run, which has one guaranteed job and any number of standby jobs.

    Args:
        first: first part of the name, which a guaranteed job gives that succeeds another one.
    """
    task = os.environ.get("SLURM_PROCID", "0")
    standard = guaranteed_prefix() if role == "live" else standby_prefix(os.environ.get("SLURM_JOB_ID", "0"))
    return worker_name(first or standard, task)


def main(path: Path, role: Role, name: str, left: int = 0, last_word: int | None = None) -> None:
    """Run a worker until it is told to leave, then exit with ``left``, or with 1 if it failed. Does not return.

    One that is turned away exits with :data:`~.base.errors.REFUSED` where ``left`` tells leaving from failing.

    Args:
        last_word: file descriptor in which whoever started it finds why it failed, if it did.
    """
    # Before anything slow, as a notice may come at any time.
    signals = signal_pipe()
    deny_writing_to_others()
    allow_many_files()
    run_dir = RunDir(path)
    _log_to(run_dir.worker_log(name))
    if role == "standby":  # nobody counts on it yet, and whoever wants its node waits for nothing
        while_starting(_leave_early)
    code = left
    try:
        if _work(run_dir, role, name, signals) and left:
            code = REFUSED
    except BaseException as error:  # noqa: BLE001 - sys.exit() of a user's, too: nobody has told this worker to leave
        _tell_failure(name, error, last_word)
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: destructors of communication libraries may wait for peers that are gone.
    os._exit(code)


def _tell_failure(name: str, error: BaseException, last_word: int | None) -> None:
    """Log why this worker failed, and tell its parent: no coordinator may have welcomed it yet."""
    trace = None if isinstance(error, BadInput) else error
    logging.getLogger(__name__).error("%s failed: %s", name, error, exc_info=trace)
    if last_word is not None:
        os.write(last_word, first_line(error).encode(errors="replace")[:LAST_WORD])


def _work(run_dir: RunDir, role: Role, name: str, signals: int) -> bool:
    """Work until told to leave; returns whether the coordinator has turned the worker away."""
    from liver_slurm.config.load import read_job
    from liver_slurm.rundir.registry import read_run_info

    config = read_job(run_dir.job_file)
    info = read_run_info(run_dir)
    if config.stream.interface:  # what the environment says goes first
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, config.stream.interface)
    log = logging.getLogger(__name__)
    log.info("%s: pid %d on %s", name, os.getpid(), socket.gethostname())

    device, engine = engine_of(config)
    with quick_imports():
        from liver_slurm.worker.worker import Identity, Worker

    identity = Identity(
        run_id=info.run_id,
        name=name,
        role=role,
        host=socket.gethostname(),
        job_id=os.environ.get("SLURM_JOB_ID", name),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        device=device,
    )
    worker = Worker(identity, config, engine, run_dir, signals)
    started()
    log.info("%s leaves: %s", name, worker.run())
    return worker.refused


def _leave_early(reason: str) -> None:
    """Exit while starting. It is called by a signal's handler, where the log may be in use."""
    os.write(2, f"{reason}: this worker leaves before it has started\n".encode())
    os._exit(0)


def engine_of(config: JobConfig) -> tuple[torch.device, Engine]:
    """Import the job's engine, and choose the device that it is to use here."""
    with quick_imports():
        from liver_slurm.worker.device import choose_device

        device = choose_device(config)
        from liver_slurm.parallel.plain_objects import forbid_pickles

        forbid_pickles()
        if config.train.loop is not None:
            from liver_slurm.engine.own_loop.engine import LoopEngine

            return device, LoopEngine()
        from liver_slurm.engine.megatron.engine import MegatronEngine
    return device, MegatronEngine()


def _log_to(path: Path) -> None:
    """Redirect everything that this process and its libraries print to the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable()  # a worker that hangs shows where when it is sent SIGABRT
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
