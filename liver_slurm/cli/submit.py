"""``liver-slurm submit``: submit a job file to Slurm."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from liver_slurm.base import interrupts
from liver_slurm.cli.common import (
    JOB_FILES,
    RUN_FILES,
    Subparsers,
    add_job_file,
    add_json,
    job_file,
    new_parser,
    print_json,
)
from liver_slurm.config.load import load_job, overridden, read_job
from liver_slurm.rundir.copies import not_copied
from liver_slurm.rundir.registry import new_run_dir

if TYPE_CHECKING:
    from liver_slurm.app.api import Job

DESCRIPTION = """\
Submit a job file to Slurm. The whole file is checked first, every problem is reported at once, and nothing is
submitted or left behind when there is one.

The run grows into idle nodes of standby.partitions and gives them back on preemption, up to standby.max_jobs."""
EXAMPLES = {
    "submit configs/gpt-tiny.toml --wait": "",
    "submit job.toml --set train.steps=500": "",
    "submit job.toml --set standby.max_jobs=0": "a run that is never resized",
    "submit job.toml --dry-run": "the batch script, to read: its run directory is not made",
    "submit job.toml --prepare": "for sbatch by hand: sbatch RUN_DIR/live.sh",
    "submit --resume 1234": "a new run from the newest checkpoint of that one",
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``submit`` to the commands."""
    parser = new_parser(
        subparsers,
        "submit",
        DESCRIPTION,
        EXAMPLES,
        files={**JOB_FILES, **RUN_FILES, "sbatch/live.sh.j2": "the batch script's template"},
        see_also=("check", "doctor", "status", "events", "resize", "cancel"),
    )
    add_job_file(parser, resumable=True)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the job, print the batch script and do nothing; --prepare makes one that can be submitted",
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="make the run directory with the batch script in it, print its path, submit nothing: for sbatch by hand",
    )
    parser.add_argument("--wait", action="store_true", help="show progress until the run is over")
    add_json(parser, 'print {"job_id", "run_dir"} and nothing else on stdout')


def run(args: argparse.Namespace) -> int:
    """Submit the job; with --wait the exit code says how the run ended."""
    from liver_slurm.app.api import check_config, prepare_config, submit_config

    file = job_file(args)
    config = load_job(file, args.overrides)
    if keys := overridden(file):
        print(f"{Path(file).name} overrides the site file: {', '.join(keys)}", file=sys.stderr)
    if args.dry_run:
        sys.stdout.write(check_config(config, args.resume).script(new_run_dir(config)))
        return 0
    if args.prepare:
        prepared = prepare_config(config, args.resume).run_dir.path
        if args.json:
            print_json({"job_id": "", "run_dir": str(prepared)})
        else:
            print(prepared)
        return 0
    with interrupts.orderly():
        job = submit_config(config, args.resume)
        try:
            if args.json:
                print_json({"job_id": job.job_id, "run_dir": str(job.run_dir.path)})
                sys.stdout.flush()
            else:
                _print_next(job.job_id, str(job.run_dir.path))
            return _wait(job) if args.wait else 0
        except KeyboardInterrupt as error:
            left = f"job {job.job_id} runs on; liver-slurm status {job.job_id} shows it, cancel ends it"
            raise interrupts.Interrupted(interrupts.number_of(error), left) from None


def _print_next(job_id: str, run_dir: str) -> None:
    print(f"Submitted job {job_id}, run directory {run_dir}\n")
    for command, what in (
        (f"status {job_id}", "step, layout, workers and standbys"),
        (f"events {job_id} --follow", "what happens, and why"),
        (f"logs {job_id} --follow", "what the coordinator prints; --worker live-0 for a worker"),
        (f"resize {job_id} --workers N", "another number of workers"),
        (f"cancel {job_id}", "end it, and its standby jobs"),
    ):
        print(f"  liver-slurm {command:<{len(job_id) + 20}}  # {what}")


def _wait(job: Job) -> int:
    from liver_slurm.cli.progress import ProgressView

    with ProgressView(job.run_dir, f"{job.run_dir.path.name} (job {job.job_id})"):
        document = job.wait()
    state, reason = document["state"], document["reason"]
    print(f"job {job.job_id} {state} at step {document['step']}" + (f": {reason}" if reason else ""), file=sys.stderr)
    if missing := not_copied(read_job(job.run_dir.job_file), job.run_dir):
        print(missing, file=sys.stderr)
    return 0 if state == "finished" else 1
