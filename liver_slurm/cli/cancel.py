"""``liver-slurm cancel``: end a run and everything that it started."""

from __future__ import annotations

import argparse

from liver_slurm.cli.common import RUN_FILES, Subparsers, add_job, add_json, new_parser, print_json

DESCRIPTION = """\
End a run and everything that it started, and nothing else. Its coordinator is asked; whether it answers or not, all
jobs that carry the run's name and directory are cancelled, pending ones too, and the command returns when none is left.
Plain processes are told to end."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``cancel`` to the commands."""
    parser = new_parser(
        subparsers,
        "cancel",
        DESCRIPTION,
        {"cancel 1234": "by job id", "cancel gpt-tiny": "by name: the run of that name that goes on"},
        files=RUN_FILES,
        see_also=("status", "submit"),
    )
    add_job(parser)
    add_json(parser, 'print {"run_dir", "how"}')


def run(args: argparse.Namespace) -> int:
    """Cancel the run and say how it was done."""
    from liver_slurm.app.api import find

    job = find(args.job, only=True)
    how = job.cancel()
    if args.json:
        print_json({"run_dir": str(job.run_dir.path), "how": how})
    else:
        print(f"{job.run_dir.path.name}: {how}")
    return 0
