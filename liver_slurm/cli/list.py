"""``liver-slurm list``: the runs of this user."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from msgspec.structs import replace

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import RUN_FILES, Subparsers, add_json, moment, new_parser, print_json, print_table
from liver_slurm.config.load import read_job
from liver_slurm.rundir.paths import RunDir

DESCRIPTION = """\
All runs that this user submitted or started and that are still on disk, newest first. A run of which nothing is alive
and that never said how it ended is lost; a question mark after a state: Slurm could not be asked."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``list`` to the commands."""
    parser = new_parser(subparsers, "list", DESCRIPTION, ("list", "list --json"), files=RUN_FILES, see_also=("status",))
    add_json(parser, 'print a JSON list of {"job_id", "name", "state", "step", "layout", "run_dir", …}')


def run(args: argparse.Namespace) -> int:
    """Print all runs."""
    documents = overview()
    if args.json:
        print_json(documents)
    else:
        print_overview(documents)
    return 0


def overview() -> list[dict[str, Any]]:
    """Make a short status document of each run, from its files and one look at the processes of those not over."""
    from liver_slurm.app import processes
    from liver_slurm.observability.run_view import RunFiles
    from liver_slurm.observability.summary import PREPARED
    from liver_slurm.rundir.registry import list_runs

    watched = [RunFiles(run_dir) for run_dir, _ in list_runs() if _readable(run_dir)]
    for files in watched:
        files.refresh()
    found = processes.find_all([files.run_dir for files in watched if not files.over])
    documents = []
    for files in watched:
        look = found.get(files.run_dir)
        status = replace(files.status(), created=files.created, certain=look is None or look.alive is not None)
        if look is not None and look.state == PREPARED:
            status = replace(status, state=PREPARED, reason=look.why, certain=True)
        elif look is not None and look.alive is False:
            status = replace(status, state=look.state, reason=look.why)
        documents.append(status.document())
    return documents


def _readable(run_dir: RunDir) -> bool:
    """Tell whether this version can read the run's job; a run that it cannot read must not hide the others."""
    try:
        read_job(run_dir.job_file)
    except BadInput as error:
        print(f"liver-slurm: left out: {error}", file=sys.stderr)
        return False
    return True


def print_overview(documents: list[dict[str, Any]]) -> None:
    """Print the documents of :func:`overview` as a table."""
    if not documents:
        print("No runs. Start one: liver-slurm submit configs/gpt-tiny.toml")
        return
    rows = [
        [
            document["job_id"] or None,
            document["name"],
            document["state"] + ("" if document["certain"] else "?"),
            f"{document['step']}/{document['steps']}",
            document["layout"],
            moment(document["created"]),
            document["run_dir"],
        ]
        for document in documents
    ]
    print_table(rows, ("job", "name", "state", "step", "layout", "created", "run directory"))
