"""The validation loss of checkpoints, taken on this machine, in any layout, while their run goes on or after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from liver_slurm.app.runs import alive, find_run
from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.config.load import save_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.checkpoints import checkpoint_step, list_checkpoints, sound_checkpoints
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import checkpoint_folders, trusted_paths
from liver_slurm.rundir.trust import check_trusted
from liver_slurm.rundir.validation import ValidationMetrics, read_validations
from liver_slurm.scheduler.local.process import start, worker_environment
from liver_slurm.worker.evaluation import Orders, Problem, orders_file, problem_file, results_file

_POLL = 0.1


def find_checkpoints(text: str, every: bool, purpose: str) -> tuple[RunDir, list[Path]]:
    """Return the run and the checkpoints that a run or a checkpoint's folder names, oldest first.

    Args:
        text: Slurm job id, run name, run directory, or a folder ``step-N`` in its ``checkpoints``.
        every: all whole ones of a run, and not the newest only.
        purpose: what they are wanted for, for people: ``evaluate``, ``export``.

    Raises:
        BadInput: there is no such run, it has none that is whole, or others can write it.
    """
    path = Path(text).absolute()
    if path in list_checkpoints(path.parent):
        run_dir = find_run(str(path.parent.parent))
        check_trusted(trusted_paths(run_dir))
        return run_dir, [path]
    run_dir = find_run(text)
    check_trusted(trusted_paths(run_dir))
    refused: dict[Path, str] = {}
    whole = sound_checkpoints(checkpoint_folders(run_dir), refused)
    first = next(whole, None)
    if first is None:
        why = next(iter(refused.values()), f"there is no complete checkpoint in {run_dir.checkpoints}")
        advice = f"; `liver-slurm checkpoint {run_dir.path.name}` asks for one" if alive([run_dir]) else ""
        raise BadInput(f"{run_dir.path} has no checkpoint to {purpose}: {why}{advice}")
    by_step = {checkpoint_step(one): one for one in (first, *(whole if every else ()))}
    return run_dir, [by_step[step] for step in sorted(by_step)]


def evaluate(
    config: JobConfig, checkpoints: Sequence[Path], layout: Layout, averages: bool = False
) -> list[ValidationMetrics]:
    """Take the loss of the job's validation data of each checkpoint, in a process a rank.

    Args:
        config: of their run; its data may be other data.
        layout: that the model can have; it need not be one that they were written in.
        averages: take that of the moving averages of the weights.

    Raises:
        BadInput: the job has no validation data, or what it names cannot be read.
        LiverError: a process failed.
        KeyboardInterrupt: a signal has ended it; no process is left.
    """
    if not config.validation.wanted:
        raise BadInput("there is nothing to evaluate with: set validation.paths, or validation.provider")
    with interrupts.orderly(), interrupts.temporary_folder("liver-evaluate-") as folder:
        run_dir = RunDir(folder)
        save_job(replace(config, validation=replace(config.validation, patience=0, keep_best=False)), run_dir.job_file)
        orders = Orders(layout=str(layout), checkpoints=[str(path) for path in checkpoints], averages=averages)
        orders_file(folder).write_bytes(msgspec.json.encode(orders))
        _run(config, folder, layout.size)
        return list(read_validations(results_file(folder)))


def _run(config: JobConfig, folder: Path, ranks: int) -> None:
    gpus = any(component.gpus_per_task for component in config.live.component)
    processes: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"rank-{rank}.log" for rank in range(ranks)]
    try:
        for rank, log in enumerate(logs):
            environment = worker_environment(rank, ranks, gpus) | {"TMPDIR": str(folder)}
            arguments = [str(folder), str(rank)]
            processes.append(start("liver_slurm.worker.evaluation", arguments, log, environment, signal.SIGKILL))
        while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
            time.sleep(_POLL)
        failed = next((rank for rank, process in enumerate(processes) if process.poll()), None)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and all that it had started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if problem_file(folder).exists():
        problem = msgspec.json.decode(problem_file(folder).read_bytes(), type=Problem)
        raise (BadInput if problem.exit_code == BadInput.exit_code else LiverError)(problem.message)
    if failed is not None:
        lines = logs[failed].read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise LiverError(f"evaluating failed, rank {failed} of {ranks}: {lines[-1]}")
