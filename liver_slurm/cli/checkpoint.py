"""``liver-slurm checkpoint``: ask a run for a checkpoint."""

from __future__ import annotations

import argparse

from liver_slurm.cli.common import Subparsers, add_job, add_json, new_parser, print_json

DESCRIPTION = """\
Ask a run to write a checkpoint soon. It lies in checkpoints/ of the run directory when the event log says so, and
`submit --resume` continues from it, in any layout."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``checkpoint`` to the commands."""
    parser = new_parser(
        subparsers,
        "checkpoint",
        DESCRIPTION,
        ("checkpoint 1234", "submit --resume 1234"),
        files={"RUN/checkpoints/": "a folder for each step that was saved"},
        see_also=("events", "submit"),
    )
    add_job(parser)
    add_json(parser, 'print {"accepted"}')


def run(args: argparse.Namespace) -> int:
    """Send the request to the run's coordinator."""
    from liver_slurm.app.api import find

    accepted = find(args.job, only=True).checkpoint()
    if args.json:
        print_json(accepted)
    else:
        print(f"accepted; liver-slurm events {args.job} --follow shows when it is written")
    return 0
