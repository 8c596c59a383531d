"""``liver-slurm resize``: ask a run for another layout or number of workers."""

from __future__ import annotations

import argparse

from liver_slurm.cli.common import Subparsers, add_job, add_json, complete, new_parser, print_json

DESCRIPTION = """\
Ask a run for another layout, or for the best layout for a number of workers. The request is judged at once; the change
itself is prepared during training, and `events --follow` shows it. From then on the run does not grow by itself beyond
what was asked for. Where workers are missing, standby jobs are started for them and the request waits; a later request
takes the place of one that waits."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``resize`` to the commands."""
    parser = new_parser(
        subparsers,
        "resize",
        DESCRIPTION,
        ("resize 1234 --layout tp2pp1dp2", "resize 1234 --workers 4"),
        see_also=("plan", "events"),
    )
    add_job(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    complete(what.add_argument("--layout", metavar="LAYOUT", help="such as tp2pp1dp2"), "layouts")
    what.add_argument("--workers", type=int, metavar="N", help="workers of the next world")
    parser.add_argument(
        "--give-back",
        action="store_true",
        help="to fewer workers than the guaranteed job has: nodes that become free go back to Slurm for good, the last "
        "ones of a component or a whole component; their workers exit",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Send the request to the run's coordinator."""
    from liver_slurm.app.api import find

    accepted = find(args.job, only=True).resize(args.layout, args.workers, give_back=args.give_back)
    if args.json:
        print_json(accepted)
    else:
        missing = accepted.get("waits_for_workers", 0)
        waits = f"; waits for {missing} more worker{'s' if missing > 1 else ''} from standby jobs" if missing else ""
        wanted = args.layout or f"{args.workers} workers"
        print(f"accepted: {wanted}{waits}; liver-slurm events {args.job} --follow shows it")
        if given := accepted.get("give_back"):
            nodes = given["nodes"]
            print(f"{nodes} node{'s' if nodes > 1 else ''} of the guaranteed job will go back to Slurm")
            if given["reason"]:
                print(given["reason"])
    return 0
