"""``liver-slurm status``."""

from __future__ import annotations

import argparse

from msgspec import UNSET

from liver_slurm.cli import list as list_command
from liver_slurm.cli.common import (
    RUN_FILES,
    Subparsers,
    add_job,
    add_json,
    bytes_text,
    new_parser,
    print_json,
    print_table,
    printable,
)
from liver_slurm.cli.progress import progress_rows
from liver_slurm.observability.status import RunStatus, WorkerStatus, from_status
from liver_slurm.observability.summary import PREPARED

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
        _print(from_status(document))
    return 0


def _print(status: RunStatus) -> None:
    rows = [
        ("run", str(status.run_dir)),
        ("job", status.job_id or ("not submitted" if status.state == PREPARED else "plain processes")),
        *progress_rows(status),
    ]
    if status.coordinator is not UNSET:
        rows.append(("coordinator", status.coordinator))
    if status.queries is not UNSET and status.queries.last_minute is not None:
        asked, most = status.queries.last_minute, status.queries.per_minute
        rows.append(("slurmctld", f"{asked} queries in the last minute of {most:g}"))
    if status.checkpoint_error is not UNSET:
        rows.append(("checkpoint", f"the last one could not be written: {status.checkpoint_error}"))
    if mirrors := _mirrors(status):
        rows.append(("mirrors", mirrors))
    if status.files is not UNSET:
        rows.append(("files", "; ".join(f"{process}: {why}" for process, why in status.files.items())))
    for name, value in rows:
        print(printable(f"{name + ':':<13}{value}"))
    workers = [*status.workers, *status.standbys]
    if workers:
        print()
        print_table(map(_worker_row, workers), ("rank", "worker", "host", "device", "job", "pid", "notice"))


def _mirrors(status: RunStatus) -> str:
    """Return how mirrors are kept, how many are whole, and what memory they take; empty: there are none."""
    words = [worker.mirror for worker in status.workers if worker.mirror is not UNSET]
    if not words:
        return ""
    told = [f"{words.count('whole')} of {len(words)} whole"]
    told += list(dict.fromkeys(worker.mirror_way for worker in status.workers if worker.mirror_way is not UNSET))
    takes = [worker.mirror_bytes for worker in status.workers if worker.mirror_bytes is not UNSET]
    if takes:
        told.append(f"{bytes_text(sum(takes))} of host memory, at most {bytes_text(max(takes))} in a worker")
    proofs = [worker.mirror_proofs for worker in status.workers if worker.mirror_proofs is not UNSET]
    if proofs:
        made, differed = map(sum, zip(*proofs, strict=True))
        told.append(f"{differed} of {made} proofs differed")
    return "; ".join(told)


def _worker_row(worker: WorkerStatus) -> list[object]:
    # Guaranteed workers have no rank before world 0; files do not tell what a worker's role is.
    rank = worker.rank if worker.rank is not UNSET else "standby" if worker.role is UNSET else worker.role
    rest = (worker.worker, worker.host, worker.device, worker.job_id, worker.pid, worker.notice)
    return [rank, *(None if value is UNSET else value for value in rest)]
