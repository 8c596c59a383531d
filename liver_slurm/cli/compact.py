"""``liver-slurm compact``: compress what runs that are over have written about themselves."""

from __future__ import annotations

import argparse

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import Subparsers, add_json, complete, new_parser, print_json

DESCRIPTION = """\
Compress the events and metrics of runs that are over, to about a fifth: a step is a line of some 300 bytes, so a month
at one step a second takes 0.8 GB. All commands read them as before; the last thousand lines stay plain."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``compact`` to the commands."""
    parser = new_parser(
        subparsers,
        "compact",
        DESCRIPTION,
        ("compact 1234", "compact gpt-7b-20261128-101500-ab12 gpt-7b-20261103-090000-cd34"),
        files={"RUN/metrics.jsonl.gz": "the lines before those in metrics.jsonl; likewise of events and validations"},
        see_also=("list", "goodput"),
    )
    complete(parser.add_argument("runs", nargs="+", metavar="RUN", help="job id, name or run directory"), "runs")
    add_json(parser, 'print a JSON list of {"run_dir", "before", "after"}, in bytes')


def run(args: argparse.Namespace) -> int:
    """Compress each run's files, and say what that saved."""
    from liver_slurm.app.api import find
    from liver_slurm.app.runs import alive
    from liver_slurm.base import archive

    jobs = [find(text) for text in args.runs]
    for job in jobs:
        if alive([job.run_dir]):
            raise BadInput(f"{job.run_dir.path} is not over, and goes on writing; compact it when it is")
    found = []
    for job in jobs:
        files = [job.run_dir.events, job.run_dir.metrics, job.run_dir.validations]
        before = sum(map(archive.nbytes, files))
        for file in files:
            if file.exists():
                archive.compress(file)
        found.append({"run_dir": str(job.run_dir.path), "before": before, "after": sum(map(archive.nbytes, files))})
    if args.json:
        print_json(found)
        return 0
    for one in found:
        print(f"{one['run_dir']}: {one['before']:,} bytes before, {one['after']:,} now")
    return 0
