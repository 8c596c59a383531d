"""Runs on disk: making a run directory, and finding one again by job id, name or path."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file
from liver_slurm.config.load import default_run_root, read_job, save_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir import resume as resuming
from liver_slurm.rundir.checkpoints import checkpoint_step, newest_checkpoint
from liver_slurm.rundir.paths import RunDir


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``run.json`` holds: who the run is."""

    run_id: str
    """Random; a worker of another run is refused by it."""
    name: str
    created: float
    """Seconds since the epoch."""
    job_id: str = ""
    """Slurm's id of the guaranteed job; empty: not submitted, or a run of plain processes."""
    earlier_jobs: tuple[str, ...] = ()
    """Ids of the guaranteed jobs before that one, whose time limits are over."""
    resumed_from: str = ""
    """Run directory whose newest checkpoint this run started from."""


def create_run(config: JobConfig, resume: RunDir | None = None) -> RunDir:
    """Make a fresh run directory ``run_root/NAME-YYYYmmdd-HHMMSS-xxxx`` with job, identity and keys in it.

    Args:
        resume: run whose newest checkpoint the new one starts from.

    Raises:
        BadInput: it cannot be made there, it exists, or there is nothing to resume from, or nothing that fits.
    """
    from liver_slurm.rundir import keys

    if resume is not None:
        _check_resumable(config, resume)
    run_dir = new_run_dir(config)
    _make_folder(run_dir.path)
    try:
        for folder in (run_dir.logs, run_dir.checkpoints, run_dir.data, run_dir.standby):
            folder.mkdir()
        keys.create(run_dir.secrets)
        save_job(config, run_dir.job_file)
        from_run = str(resume.path) if resume is not None else ""
        info = RunInfo(run_id=secrets.token_hex(16), name=config.job.name, created=time.time(), resumed_from=from_run)
        write_run_info(run_dir, info)
    except KeyboardInterrupt:
        shutil.rmtree(run_dir.path)
        raise
    return run_dir


def new_run_dir(config: JobConfig) -> RunDir:
    """Where a run that starts now would lie; nothing is made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RunDir(Path(config.job.run_root) / f"{config.job.name}-{stamp}-{secrets.token_hex(2)}")


def read_run_info(run_dir: RunDir) -> RunInfo:
    """Who the run is.

    Raises:
        BadInput: not a run directory.
    """
    try:
        return msgspec.json.decode(run_dir.run_file.read_bytes(), type=RunInfo)
    except FileNotFoundError:
        raise BadInput(f"{run_dir.path} is not a run directory: it has no {run_dir.run_file.name}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"{run_dir.run_file} cannot be read: {error}") from None


def write_run_info(run_dir: RunDir, info: RunInfo) -> None:
    """Replace ``run.json``."""
    replace_file(run_dir.run_file, msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n")


def record_run(run_dir: RunDir, job_id: str = "") -> None:
    """Note the Slurm job's id in the run directory, and the run in this user's index, where :func:`find_run` looks."""
    info = msgspec.structs.replace(read_run_info(run_dir), job_id=job_id)
    write_run_info(run_dir, info)
    index = index_file()
    index.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"job_id": job_id, "name": info.name, "run_dir": str(run_dir.path), "created": info.created})
    descriptor = os.open(index, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def record_successor(run_dir: RunDir, job_id: str) -> None:
    """Note that another Slurm job is, or will be, the run's guaranteed job."""
    info = read_run_info(run_dir)
    if info.job_id and info.job_id != job_id:
        earlier = (*info.earlier_jobs, info.job_id)
        write_run_info(run_dir, msgspec.structs.replace(info, job_id=job_id, earlier_jobs=earlier))


def index_file() -> Path:
    """This user's list of runs."""
    return Path("~/.liver-slurm/runs.jsonl").expanduser()


def find_run(text: str) -> RunDir:
    """The run that a job id, a name, a run directory's name or its path names; of several, the newest.

    Raises:
        BadInput: there is none, or its run directory is gone.
    """
    if (path := Path(text)).is_dir():
        run_dir = RunDir(path.absolute())
        read_run_info(run_dir)
        return run_dir
    for run_dir, info in list_runs():
        jobs = {info.job_id, *info.earlier_jobs} - {""}
        if text in (info.name, run_dir.path.name) or text.partition("+")[0] in jobs:
            return run_dir
    for entry in _index_entries():
        if text in (entry["job_id"], entry["name"], Path(entry["run_dir"]).name):
            raise BadInput(f"run {text} is gone: its run directory {entry['run_dir']} was removed")
    raise BadInput(
        f"there is no run {text!r}; `liver-slurm list` shows the known ones, a run directory's path works too"
    )


def list_runs() -> list[tuple[RunDir, RunInfo]]:
    """All runs that this user's index or the default run root knows and that are still there, newest first."""
    paths = {Path(entry["run_dir"]) for entry in _index_entries()}
    root = default_run_root()
    if root.is_dir():
        paths |= {one.parent for one in root.glob("*/run.json")}
    found = [(run_dir, info) for run_dir in map(RunDir, paths) if (info := _info_or_none(run_dir)) is not None]
    return sorted(found, key=lambda one: (-one[1].created, one[0].path.name))


def resume_step(run_dir: RunDir) -> int:
    """Steps that are completed in the run's newest checkpoint.

    Raises:
        BadInput: it is no run directory, or has none.
    """
    read_run_info(run_dir)
    saved = newest_checkpoint(run_dir.checkpoints)
    if saved is None:
        raise BadInput(f"{run_dir.path} cannot be resumed: there is no complete checkpoint in {run_dir.checkpoints}")
    return checkpoint_step(saved)


def _check_resumable(config: JobConfig, run_dir: RunDir) -> None:
    step = resume_step(run_dir)
    found = resuming.problems(config, read_job(run_dir.job_file), step)
    if found:
        raise BadInput("\n".join(found))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise BadInput(f"run directory {path} exists; nothing was changed, try again") from None
    except OSError as error:
        raise BadInput(f"job.run_root: cannot make {path}: {error.strerror}") from None


def _info_or_none(run_dir: RunDir) -> RunInfo | None:
    try:
        return read_run_info(run_dir)
    except BadInput:
        return None  # listed once, removed since; a listing shows what is there


def _index_entries() -> Iterator[dict[str, str]]:
    """Newest first; lines that are not ours (a torn write) are passed over."""
    try:
        lines = index_file().read_text().splitlines()
    except FileNotFoundError:
        return
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"job_id", "name", "run_dir"} <= entry.keys():
            yield entry
