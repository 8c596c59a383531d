"""``liver-slurm goodput``: where the device-seconds of runs went."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from liver_slurm.cli.common import (
    RUN_FILES,
    Subparsers,
    add_json,
    complete,
    moment,
    new_parser,
    print_json,
    print_table,
    seconds_text,
    without_collector,
)

if TYPE_CHECKING:
    from liver_slurm.observability.ledger.document import Ledger

DESCRIPTION = """\
Where the device-seconds of one or several runs went: every second of every device by cause, with ETTR, capacity
goodput, what each change of the world cost, and what the run may expect at its rate of changes. Folded from the run's
files, also while it runs and after it was killed; nothing is asked of Slurm, and nothing is guessed.

Buckets have the names of Google's ml-goodput-measurement; docs/reports.md says what is in each."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``goodput``."""
    parser = new_parser(
        subparsers,
        "goodput",
        DESCRIPTION,
        {"goodput 1234": "", "goodput 1234 1301": "two runs, and both together", "goodput 1234 --json": "for programs"},
        files={**RUN_FILES, "RUN/metrics.jsonl, RUN/events.jsonl": "what it is folded from"},
        see_also=("report", "events", "status"),
    )
    runs = "Slurm job id, run name, or run directory; several are also summed"
    complete(parser.add_argument("runs", metavar="RUN", nargs="+", help=runs), "runs")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the ledgers."""
    from liver_slurm.observability.ledger.document import documents, make_ledger
    from liver_slurm.observability.ledger.facts import linked, read_facts
    from liver_slurm.rundir.registry import find_run

    now = time.time()
    run_dirs = {run_dir.path.resolve(): run_dir for run_dir in map(find_run, args.runs)}
    with without_collector():
        facts = linked([read_facts(run_dir, now) for run_dir in run_dirs.values()])
        ledgers = [make_ledger(one) for one in facts]
        found = documents(ledgers)
    if args.json:
        print_json(found)
        return 0
    for number, ledger in enumerate(ledgers):
        if number:
            print()
        _print(ledger)
    if len(ledgers) > 1:
        total = found["total"]
        print(
            f"\nall {len(ledgers)} runs: ETTR {total['ettr']:.4f}, capacity goodput {total['capacity_goodput']:.4f}, "
            f"{total['held_device_s']:,.1f} device-seconds held in {total['wall_s']:,.1f} s"
        )
    return 0


def _print(ledger: Ledger) -> None:
    from liver_slurm.observability.ledger.causes import NAMES

    facts = ledger.account.facts
    in_progress = facts.outcome in ("training", "queued")
    as_of = f", as of {moment(facts.until)}; no end of it is on record" if in_progress else ""
    print(f"{facts.run}: {facts.outcome}{as_of}")
    for name, value in (*_headline(ledger), *_expected(ledger)):
        print(f"{name + ':':<18}{value}")
    print()
    print_table(_buckets(ledger, NAMES), ("bucket", "device-seconds", "share", "run seconds", "of it"))
    if ledger.changes:
        print()
        headers = ("generation", "from", "to", "cause", "exposed", "hidden", "phases (hidden + exposed)")
        print_table(_changes(ledger), headers)


def _headline(ledger: Ledger) -> Iterator[tuple[str, str]]:
    from liver_slurm.observability.ledger.account import held
    from liver_slurm.observability.ledger.document import efficiencies, lost_work, mfu

    account, total = ledger.account, ledger.account.total()
    seconds = f"productive {_productive(ledger):,.1f} s / wall {ledger.wall_s:,.1f} s, queue included"
    yield "ETTR", f"{ledger.ettr:.4f} = {seconds}"
    known = "" if ledger.sizes.known else " (what was offered beyond what was held is not on record)"
    offered = f"{ledger.offered_device_s:,.1f} device-seconds offered{known}"
    yield "capacity goodput", f"{ledger.capacity_goodput:.4f} of {offered}"
    efficiency = efficiencies(ledger)
    stepping, available = efficiency["stepping_slice_efficiency"], efficiency["available_slice_efficiency"]
    yield "slices", f"stepping {stepping:.4f}, available {available:.4f} of {account.facts.job.most}"
    lost = lost_work(account, total)
    unknown = account.facts.counted is None and account.facts.outcome != "finished"
    note = " (what a run that resumed this one trained again is known if it is named, too)" if unknown else ""
    yield "lost work", f"{lost['steps']:.0f} steps, {lost['device_s']:,.1f} device-seconds{note}"
    used = mfu(account, held(total))
    if used["run"] is not None and used["steps"] is not None:
        yield "MFU", f"{used['run']:.3f} over the run, {used['steps']:.3f} in steps"


def _productive(ledger: Ledger) -> float:
    from liver_slurm.observability.ledger.causes import Cause

    return ledger.account.of_the_run().get(Cause.STEP, 0.0)


def _expected(ledger: Ledger) -> Iterator[tuple[str, str]]:
    expected, other = ledger.expected, ledger.restarted
    if expected.between_s is not None:
        rate = f"{expected.changes} changes and {expected.losses} losses, one each {expected.between_s:,.1f} s"
        figures = f"{expected.ettr:.4f} once training has begun, measured {expected.measured:.4f}"
        yield "expected", f"{figures} ({rate} of training; {seconds_text(expected.u0_s)} lost by one)"
    if expected.changes and other.restart_s is not None:
        yield "with restarts", f"ETTR {other.ettr:.4f}: {other.assumption}"


def _buckets(ledger: Ledger, names: Iterable[str]) -> Iterator[list[object]]:
    from liver_slurm.observability.ledger.causes import by_bucket, text
    from liver_slurm.observability.ledger.document import causes_of, ratio

    total = ledger.account.total()
    sums, wall, whole = by_bucket(total), by_bucket(ledger.account.of_the_run()), sum(total.values())
    for name in names:
        causes = [(text(cause), total.get(cause, 0.0)) for cause in causes_of(name)]
        parts = [f"{cause} {seconds:,.1f}" for cause, seconds in causes if seconds > 0.0] if len(causes) > 1 else []
        yield [name, f"{sums[name]:,.3f}", f"{ratio(sums[name], whole):.2%}", f"{wall[name]:,.3f}", ", ".join(parts)]
    yield ["all", f"{whole:,.3f}", "100.00%", f"{ledger.wall_s:,.3f}", ""]


def _changes(ledger: Ledger) -> Iterator[list[object]]:
    for change in ledger.changes:
        phases = [
            f"{phase.name} {seconds_text(phase.hidden_s + phase.exposed_s)}"
            for phase in change.phases
            if phase.hidden_s + phase.exposed_s >= 0.0005
        ]
        cause = change.cause if change.committed else f"{change.cause}, given up"
        yield [
            change.generation, change.source, change.to, cause, seconds_text(change.exposed_s),
            seconds_text(change.hidden_s), ", ".join(phases),
        ]  # fmt: skip
