"""``liver-slurm chaos``: inject faults into a run of a staging cluster, at a rate and from a seed."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from liver_slurm.cli.common import Subparsers, add_job, add_json, moment, new_parser, print_json

if TYPE_CHECKING:
    from liver_slurm.chaos.conductor import Entry
    from liver_slurm.chaos.schedule import Program
    from liver_slurm.rundir.paths import RunDir

DESCRIPTION = """\
Inject faults into a run of your own, at a rate and from a seed, to see on a staging cluster that it survives them. Each
hits one process, which is first proven to be the run's: its coordinator's word, and the moment at which the process
began. Ctrl-C ends it and undoes what is in force. Every fault is a line of chaos.jsonl in the run directory."""

MORE = """\
faults:
  kill       SIGKILL
  stop       SIGSTOP, and SIGCONT 5 to 20 s later
  preempt    a job of a higher tier takes a standby's node for 20 to 60 s; where no partition may, SIGTERM to its job
  delay      half speed for 5 to 20 s
  cut        all TCP connections of the process end
  disk-full  for 5 to 20 s no file of the process may grow; nothing is filled"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``chaos`` to the commands."""
    parser = new_parser(
        subparsers,
        "chaos",
        DESCRIPTION,
        {
            "chaos 1234 --rate 1/min --seed 7": "a staging run: job.staging = true in its job file",
            "chaos 1234 --rate 6/h --seed 7 --duration 8h --faults kill,stop --yes": "any run of yours",
        },
        files={"chaos.jsonl": "what was done, in the run directory"},
        see_also=("events", "status"),
        more=MORE,
    )
    add_job(parser)
    parser.add_argument("--rate", required=True, metavar="N/UNIT", help="mean rate of faults: per s, min or h")
    parser.add_argument("--seed", required=True, type=int, metavar="N", help="the same seed chooses the same faults")
    parser.add_argument("--duration", metavar="TIME", help="such as 90s or 1h; default: until the run is over")
    parser.add_argument("--faults", metavar="LIST", help="such as kill,stop; default: all")
    parser.add_argument(
        "--targets",
        metavar="LIST",
        help="among live (members of the live world), standby (workers in no world) and coordinator; default: all",
    )
    parser.add_argument("--yes", action="store_true", help="needed where the job file does not say job.staging = true")
    add_json(parser, 'print {"run_dir", "journal", "seed", "struck", "entries"} at the end')


def run(args: argparse.Namespace) -> int:
    """Check that it may be, and strike until it is over."""
    from liver_slurm.app.api import find
    from liver_slurm.base import interrupts
    from liver_slurm.chaos.agent import STRUCK
    from liver_slurm.chaos.conductor import Conductor
    from liver_slurm.chaos.reach import Reach
    from liver_slurm.rundir.registry import read_run_info
    from liver_slurm.scheduler.slurm.connect import connect

    program, duration = _program(args)
    job = find(args.job, only=True)
    over = job.end_watch()
    _check(job.run_dir, over(), args.yes)
    info = read_run_info(job.run_dir)
    reach = Reach(job.run_dir, info.name, job.job_id, connect() if job.job_id else None)
    conductor = Conductor(job.run_dir, program, reach, _silent if args.json else _say)
    with interrupts.orderly():
        conductor.run(over, duration)
    struck = sum(entry.outcome.startswith(STRUCK) for entry in conductor.entries)
    if args.json:
        journal = str(job.run_dir.chaos)
        document = {"run_dir": str(job.run_dir.path), "journal": journal, "seed": program.seed, "struck": struck}
        print_json({**document, "entries": conductor.entries})
    else:
        print(f"{struck} fault{'' if struck == 1 else 's'}; {job.run_dir.chaos}")
    return 0


def _program(args: argparse.Namespace) -> tuple[Program, float]:
    """Return what the options ask for, and the seconds that it may last."""
    from liver_slurm.base.errors import BadInput
    from liver_slurm.base.faults import OUTSIDE
    from liver_slurm.chaos.schedule import ROLES, Program, parse_faults, parse_rate, parse_roles
    from liver_slurm.config.types import parse_duration

    option = "--rate"
    try:
        rate = parse_rate(args.rate)
        option = "--faults"
        faults = OUTSIDE if args.faults is None else parse_faults(args.faults)
        option = "--targets"
        roles = ROLES if args.targets is None else parse_roles(args.targets)
        option = "--duration"
        duration = float("inf") if args.duration is None else parse_duration(args.duration)
    except ValueError as error:
        why = str(error) or f"{args.duration!r} is no duration; allowed: such as 90s, 30m or 1h"
        raise BadInput(f"{option}: {why}") from None
    return Program(seed=args.seed, per_second=rate, faults=faults, roles=roles), duration


def _check(run_dir: RunDir, over: bool, yes: bool) -> None:
    """Refuse a run that is not the user's, is over, or is no staging run and was not said to be meant."""
    from liver_slurm.base.errors import BadInput
    from liver_slurm.base.faults import supported
    from liver_slurm.chaos.reach import is_own
    from liver_slurm.config.load import read_job

    name = run_dir.path.name
    if not supported():
        raise BadInput(f"chaos needs Linux 5.6 or newer, and {sys.platform} or its kernel is something else")
    if not is_own(run_dir):
        raise BadInput(f"{run_dir.path} is another user's; faults are injected into runs of your own only")
    if over:
        raise BadInput(f"{name} is over: there is nothing to inject faults into")
    if not yes and not read_job(run_dir.job_file).job.staging:
        raise BadInput(f"{name} is no staging run (job.staging in its job file); if it is really meant, add --yes")


def _say(entry: Entry) -> None:
    what = f"{entry.fault} {entry.target}" if entry.fault else f"strike {entry.number}"
    lasts = f", for {entry.seconds:g} s" if entry.seconds and entry.outcome.startswith("struck") else ""
    print(f"{moment(entry.time)}  {what}: {entry.outcome}{lasts}", flush=True)


def _silent(_: Entry) -> None:
    """Print nothing: the document comes at the end."""
