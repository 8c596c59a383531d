"""``liver-slurm logs``: what the coordinator or a worker printed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import Subparsers, add_job, new_parser

DESCRIPTION = """\
What a part of a run printed: the coordinator, or with --worker one worker (its names are in `status`, such as live-0).
Slurm's own output of the job lies next to them in the run directory's logs/."""
POLL = 0.2
"""Seconds between looks at a log that is followed."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``logs`` to the commands."""
    parser = new_parser(
        subparsers,
        "logs",
        DESCRIPTION,
        ("logs 1234 --follow", "logs 1234 --worker live-0"),
        files={"RUN/logs/": "a file for the coordinator and each worker, and Slurm's own"},
        see_also=("status", "events"),
    )
    add_job(parser)
    parser.add_argument("--worker", metavar="ID", help="this worker's log (default: the coordinator's)")
    parser.add_argument("--follow", action="store_true", help="go on printing until the run is over")


def run(args: argparse.Namespace) -> int:
    """Print the log."""
    from liver_slurm.app.api import find

    job = find(args.job)
    name = args.worker or "coordinator"
    log = job.run_dir.worker_log(name)
    if log.parent != job.run_dir.logs:
        raise BadInput(f"--worker: {name!r} is not a worker's name")
    ended = job.end_watch() if args.follow else None
    if ended is not None:
        _wait_for(log, ended)
    if not log.exists():
        known = ", ".join(sorted(file.stem for file in job.run_dir.logs.glob("*.log"))) or "none yet"
        raise BadInput(f"there is no log of {name} in {job.run_dir.logs}; there are: {known}")
    _copy(log, ended)
    return 0


def _wait_for(log: Path, ended: Callable[[], bool]) -> None:
    while not log.exists() and not ended():
        time.sleep(POLL)


def _copy(log: Path, ended: Callable[[], bool] | None) -> None:
    """Copy a log to stdout; with ``ended``, also what is appended to it until that returns true."""
    with log.open("rb") as stream:
        while True:
            last = ended is None or ended()
            while chunk := stream.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if last:
                return
            time.sleep(POLL)
