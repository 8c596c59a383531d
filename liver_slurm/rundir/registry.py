"""Runs on disk: making a run directory, and finding one again by job id, name or path."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file
from liver_slurm.base.jsonl import read_lines
from liver_slurm.config.batch_sizes import samples_before
from liver_slurm.config.load import default_run_root, read_job, save_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir import resume as resuming
from liver_slurm.rundir.checkpoints import CONSUMED, checkpoint_step, read_meta, sound_checkpoints
from liver_slurm.rundir.copies import check_place, copies_folder
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.start import check_start
from liver_slurm.rundir.trust import check_trusted, close_to_writers

log = logging.getLogger(__name__)


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

    config = check_beginning(config, resume)
    check_place(config, make=True)
    run_dir = new_run_dir(config)
    _make_folder(run_dir.path)
    try:
        close_to_writers(run_dir.path)
        for folder in (run_dir.logs, run_dir.checkpoints, run_dir.data, run_dir.standby):
            folder.mkdir()
            close_to_writers(folder)
        keys.create(run_dir.secrets)
        save_job(config, run_dir.job_file)
        from_run = str(resume.path) if resume is not None else ""
        info = RunInfo(run_id=secrets.token_hex(16), name=config.job.name, created=time.time(), resumed_from=from_run)
        write_run_info(run_dir, info)
    except KeyboardInterrupt:
        shutil.rmtree(run_dir.path)
        raise
    return run_dir


def check_beginning(config: JobConfig, resume: RunDir | None = None) -> JobConfig:
    """Check that a run can begin with the state that it is to begin with, and that copies of its own can be written;
    what may surprise is a warning. Returns the job that it runs.

    Args:
        resume: run whose newest checkpoint it starts from.

    Raises:
        BadInput: there is nothing to begin with, or nothing that fits.
    """
    check_place(config, make=False)
    if resume is not None:
        return _resuming(config, resume)
    check_start(config)
    return config


def new_run_dir(config: JobConfig) -> RunDir:
    """Return where a run that starts now would lie; nothing is made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RunDir(Path(config.job.run_root) / f"{config.job.name}-{stamp}-{secrets.token_hex(2)}")


def read_run_info(run_dir: RunDir) -> RunInfo:
    """Read who the run is.

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
    line = json.dumps({"job_id": job_id, "name": info.name, "run_dir": str(run_dir.path), "created": info.created})
    try:
        _append_to_index(line.encode() + b"\n")
    except OSError as error:
        # A home folder that is full or cannot be written: the run is there, and so is its job.
        log.warning("%s cannot be written (%s): find this run by %s", index_file(), error.strerror, run_dir.path)


def _append_to_index(line: bytes) -> None:
    index = index_file()
    index.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(index, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(index))
    finally:
        os.close(descriptor)


def record_successor(run_dir: RunDir, job_id: str) -> None:
    """Note that another Slurm job is, or will be, the run's guaranteed job."""
    info = read_run_info(run_dir)
    if info.job_id and info.job_id != job_id:
        earlier = (*info.earlier_jobs, info.job_id)
        write_run_info(run_dir, msgspec.structs.replace(info, job_id=job_id, earlier_jobs=earlier))


def index_file() -> Path:
    """Return the path of this user's list of runs."""
    return Path("~/.liver-slurm/runs.jsonl").expanduser()


def find_run(text: str) -> RunDir:
    """Return the run that a job id, a name, a run directory's name or its path names; of several, the newest.

    Raises:
        BadInput: there is none, or its run directory is gone.
    """
    return runs_named(text)[0]


def runs_named(text: str) -> list[RunDir]:
    """Return all runs that a job id, a name, a run directory's name or its path names, newest first.

    A folder of the working directory that is no run directory hides no run of that name.

    Raises:
        BadInput: there is none, or its run directory is gone.
    """
    if not text.strip():
        raise BadInput("an empty text names no run; allowed: a Slurm job id, a run's name or its directory")
    here = RunDir(Path(text).absolute())
    is_folder = os.path.isdir(here.path)
    if os.path.exists(here.run_file) or ("/" in text and is_folder):
        read_run_info(here)
        return [here]
    found = []
    for run_dir, info in list_runs():
        jobs = {info.job_id, *info.earlier_jobs} - {""}
        if text in (info.name, run_dir.path.name) or text.partition("+")[0] in jobs:
            found.append(run_dir)
    if found:
        return found
    if is_folder:
        read_run_info(here)  # it says what is missing
    for entry in _index_entries():
        if text in (entry["job_id"], entry["name"], Path(entry["run_dir"]).name):
            raise BadInput(f"run {text} is gone: its run directory {entry['run_dir']} was removed")
    raise BadInput(
        f"there is no run {text!r}; `liver-slurm list` shows the known ones, a run directory's path works too"
    )


def list_runs() -> list[tuple[RunDir, RunInfo]]:
    """Return all runs that this user's index or the default run root knows and that are still there, newest first."""
    paths = {Path(entry["run_dir"]) for entry in _index_entries()}
    root = default_run_root()
    if root.is_dir():
        paths |= {one.parent for one in root.glob("*/run.json")}
    found = [(run_dir, info) for run_dir in map(RunDir, paths) if (info := _info_or_none(run_dir)) is not None]
    return sorted(found, key=lambda one: (-one[1].created, one[0].path.name))


def resume_step(run_dir: RunDir) -> int:
    """Return the steps that are completed in the checkpoint that the run is resumed from: the newest whose files are
    all there.

    Raises:
        BadInput: it is no run directory, others can write it, or it has no checkpoint that can be used.
    """
    return checkpoint_step(_newest_checkpoint(run_dir))


def consumed_samples(checkpoint: Path, config: JobConfig) -> int:
    """Return the samples that a checkpoint's steps took.

    Args:
        config: of its run, from which it follows for a checkpoint of an older version, which does not say it.

    Raises:
        BadInput: it cannot be read.
    """
    return int(read_meta(checkpoint).get(CONSUMED, samples_before(config.train, checkpoint_step(checkpoint))))


def _newest_checkpoint(run_dir: RunDir) -> Path:
    read_run_info(run_dir)
    check_trusted(trusted_paths(run_dir))
    refused: dict[Path, str] = {}
    saved = next(sound_checkpoints(checkpoint_folders(run_dir), refused, contents=False), None)
    if saved is None:
        why = next(iter(refused.values()), f"there is no complete checkpoint in {run_dir.checkpoints}")
        raise BadInput(f"{run_dir.path} cannot be resumed: {why}")
    return saved


def checkpoint_folders(run_dir: RunDir) -> tuple[Path, ...]:
    """Return where a run's checkpoints lie: its own folder, then that of their copies, if it has one.

    Raises:
        BadInput: its job file cannot be read.
    """
    copies = copies_folder(read_job(run_dir.job_file), run_dir)
    return (run_dir.checkpoints,) if copies is None else (run_dir.checkpoints, copies)


def trusted_paths(run_dir: RunDir) -> tuple[Path, ...]:
    """Return where what is executed, and what becomes a model, lies in a run directory."""
    return (
        run_dir.path,
        run_dir.job_file,
        run_dir.run_file,
        run_dir.batch_script,
        run_dir.standby,
        run_dir.checkpoints,
    )


def _resuming(config: JobConfig, run_dir: RunDir) -> JobConfig:
    """Return the job of a run that goes on from the newest checkpoint of another one."""
    saved, resumed = _newest_checkpoint(run_dir), read_job(run_dir.job_file)
    step = checkpoint_step(saved)
    found = resuming.problems(config, resumed, step)
    if found:
        raise BadInput("\n".join(found))
    config = resuming.with_earlier_batches(config, resumed, step)
    other = resuming.why_other_samples(config, step, consumed_samples(saved, resumed))
    if other is not None:  # they follow from its job file, which has been changed
        raise BadInput(f"{run_dir.path} cannot be resumed: {saved.name} is not of its {run_dir.job_file.name}: {other}")
    for note in resuming.notes(config, resumed, step):
        log.warning("%s", note)
    return replace(config, train=replace(config.train, start_from=None))


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
    """Newest first; lines that are not ours (a torn write, a damaged byte) are passed over."""
    try:
        lines = list(read_lines(index_file()))
    except OSError as error:
        log.warning(
            "%s cannot be read (%s): runs are found by their path, or in the default run root", index_file(), error
        )
        return
    for entry in reversed(lines):
        if all(isinstance(entry.get(key), str) for key in ("job_id", "name", "run_dir")):
            yield entry
