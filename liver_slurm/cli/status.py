"""``liver-slurm status``."""

from __future__ import annotations

import argparse
from typing import Any

from liver_slurm.cli import list as list_command
from liver_slurm.cli.common import RUN_FILES, Subparsers, add_job, add_json, new_parser, print_json, print_table
from liver_slurm.cli.view import progress_rows

DESCRIPTION = """\
What a run is doing: its state, step, layout, workers, standbys, and why it last changed. The coordinator is asked;
where it does not answer, the run's files tell the last known state. Without a run: the list of all runs."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``status``."""
    parser = new_parser(
        subparsers,
        "status",
        DESCRIPTION,
        {"status": "all runs", "status 1234": "", "status 1234 --json": "for programs"},
        files=RUN_FILES,
        see_also=("list", "events", "logs"),
    )
    add_job(parser, optional=True)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the status."""
    if args.job is None:
        return list_command.run(args)
    from liver_slurm.app.api import find

    document = find(args.job).status()
    if args.json:
        print_json(document)
    else:
        _print(document)
    return 0


def _print(document: dict[str, Any]) -> None:
    rows = [("run", document["run_dir"]), ("job", document["job_id"] or "plain processes"), *progress_rows(document)]
    if "coordinator" in document:
        rows.append(("coordinator", document["coordinator"]))
    queries = document.get("queries") or {}
    if queries.get("last_minute") is not None:
        rows.append(("slurmctld", f"{queries['last_minute']} queries in the last minute of {queries['per_minute']:g}"))
    for name, value in rows:
        print(f"{name + ':':<13}{value}")
    workers = [*document["workers"], *document["standbys"]]
    if workers:
        print()
        print_table(
            (_worker_row(worker) for worker in workers), ("rank", "worker", "host", "device", "job", "pid", "notice")
        )


def _worker_row(worker: dict[str, Any]) -> list[object]:
    rank = worker.get("rank", worker.get("role", "standby"))  # live workers have no rank before world 0
    return [rank, *(worker.get(name) for name in ("worker", "host", "device", "job_id", "pid", "notice"))]
