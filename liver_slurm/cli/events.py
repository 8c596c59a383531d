"""``liver-slurm events``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from liver_slurm.cli.common import Subparsers, add_job, add_json, moment, new_parser, print_json, printable
from liver_slurm.rundir.event_log import LATEST

DESCRIPTION = """\
The event log of a run: worlds, reconfigurations with their pauses, notices, standbys that come and go, and why.
The same lines are in events.jsonl of the run directory."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``events``."""
    parser = new_parser(
        subparsers,
        "events",
        DESCRIPTION,
        {"events 1234 --follow": "", "events 1234 --json --follow": "for programs: a JSON document a line"},
        files={"RUN/events.jsonl": "the same, a JSON document a line"},
        see_also=("status", "logs", "resize"),
    )
    add_job(parser)
    parser.add_argument("--follow", action="store_true", help="print events as they come, until the run is over")
    add_json(parser, "print a JSON list; with --follow a JSON document a line, as they come")


def run(args: argparse.Namespace) -> int:
    """Print the events."""
    from liver_slurm.app.api import find

    events = find(args.job).events(follow=args.follow)
    if args.json and not args.follow:
        print_json(list(events))
        return 0
    for event in events:
        text = msgspec.json.encode(event).decode() if args.json else event_line(event)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    return 0


def event_line(event: dict[str, Any]) -> str:
    """Return one event for people: time, generation, name, and the rest as key=value."""
    rest = {key: value for key, value in event.items() if key not in ("time", "event", "generation")}
    fields = " ".join(f"{key}={_text(value)}" for key, value in rest.items() if value not in (None, "", []))
    line = f"{moment(event['time'])}  {event.get('generation', '-')!s:>3}  {event['event']:<24} {fields}"
    return printable(line.rstrip())


def _text(value: object) -> str:
    if isinstance(value, float):
        return moment(value) if 1e6 <= value < LATEST else f"{value:.4g}"
    if isinstance(value, list):
        return ",".join(_text(one) for one in value)
    if isinstance(value, dict):  # '' is Slurm's default partition, or this machine
        return ",".join(f"{name}:{_text(one)}" if name else _text(one) for name, one in value.items()) or "none"
    text = str(value)
    return f'"{text}"' if " " in text else text
