"""The run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing: Chrome's JSON format, with flows. Pure.

Process 1 is the run: its worlds, its changes phase by phase, its steps, and counters of its sizes. Process 2 has a
track for each worker. A flow leads from a worker's notice over the change that it causes to its commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from liver_slurm.observability.ledger.causes import Cause, text
from liver_slurm.observability.ledger.changes import Change
from liver_slurm.observability.ledger.sizes import Steps
from liver_slurm.report.model import Report
from liver_slurm.rundir.events import Notice, ReconfigurationAborted, ReconfigurationCommitted
from liver_slurm.rundir.worker_names import place_of

RUN, WORKERS = 1, 2
WORLDS, CHANGES, STEPS, TIMELINE = 1, 2, 3, 4
MOST_STEPS = 50_000
"""Steps that are written at most, evenly chosen: a viewer has its limits."""
Record = dict[str, Any]


def make_trace(report: Report) -> dict[str, Any]:
    """Return the trace as a JSON document; times are microseconds since the run was created."""
    workers = {name: number for number, name in enumerate(_workers(report), start=1)}
    records = [
        *_names(workers),
        *_worlds(report),
        *_changes(report),
        *_steps(report),
        *_timeline(report),
        *_pieces(report, workers),
        *_sizes(report),
        *_flows(report, workers),
    ]
    return {"traceEvents": records, "displayTimeUnit": "ms", "otherData": {"run": report.ledger.account.facts.run}}


def _workers(report: Report) -> list[str]:
    return list(dict.fromkeys(one.place for one in report.ledger.account.presences))


def _names(workers: dict[str, int]) -> Iterator[Record]:
    yield {"ph": "M", "name": "process_name", "pid": RUN, "args": {"name": "run"}}
    yield {"ph": "M", "name": "process_name", "pid": WORKERS, "args": {"name": "workers"}}
    tracks = {"worlds": WORLDS, "changes": CHANGES, "steps": STEPS, "timeline": TIMELINE}
    for name, number in tracks.items():
        yield {"ph": "M", "name": "thread_name", "pid": RUN, "tid": number, "args": {"name": name}}
    for name, number in workers.items():
        yield {"ph": "M", "name": "thread_name", "pid": WORKERS, "tid": number, "args": {"name": name}}


def _slice(name: str, start: float, end: float, pid: int, tid: int, **args: Any) -> Record:
    """Return a slice; times are seconds since the run was created."""
    record = {"ph": "X", "name": name, "ts": start * 1e6, "dur": max(0.0, end - start) * 1e6, "pid": pid, "tid": tid}
    return {**record, "args": args} if args else record


def _worlds(report: Report) -> Iterator[Record]:
    for world in report.ledger.account.worlds:
        name = f"{world.layout} (generation {world.generation})"
        yield _slice(name, report.since(world.begin), report.since(world.end), RUN, WORLDS, members=list(world.members))


def _changes(report: Report) -> Iterator[Record]:
    for change in report.ledger.changes:
        outcome = "" if change.committed else ", given up"
        name = f"{change.source} → {change.to}{outcome}"
        yield _slice(
            name, report.since(change.started), report.since(change.ended), RUN, CHANGES, reason=change.reason,
            cause=change.cause, exposed_s=change.exposed_s, hidden_s=change.hidden_s,
        )  # fmt: skip
        bounds = [("prepare", change.started, change.prepared), ("stream", change.prepared, change.streamed)]
        bounds.append(("commit", change.streamed, change.ended))
        for phase, start, end in bounds:
            if start is not None and end is not None:
                yield _slice(phase, report.since(start), report.since(end), RUN, CHANGES)


def _steps(report: Report) -> Iterator[Record]:
    steps = report.ledger.account.facts.steps
    every = -(-len(steps) // MOST_STEPS) or 1
    created = report.ledger.account.facts.created
    for row in range(0, len(steps), every):
        loss = float(steps.loss[row])
        yield _slice(
            f"step {steps.step[row]}", float(steps.start[row]) - created, float(steps.end[row]) - created, RUN, STEPS,
            loss=loss if loss == loss else None,
        )  # fmt: skip


def _timeline(report: Report) -> Iterator[Record]:
    """Yield what of the run's timeline is no training."""
    account = report.ledger.account
    times, causes = account.timeline.times, account.timeline.causes
    for row in (causes != Cause.STEP).nonzero()[0].tolist()[:MOST_STEPS]:
        start, end = float(times[row]), float(times[row + 1])
        if end > start:
            yield _slice(text(Cause(int(causes[row]))), report.since(start), report.since(end), RUN, TIMELINE)


def _pieces(report: Report, workers: dict[str, int]) -> Iterator[Record]:
    account = report.ledger.account
    for one, pieces in zip(account.presences, account.pieces, strict=True):
        for piece in pieces:
            name = f"world {piece.generation}" if piece.cause is None else text(piece.cause)
            yield _slice(name, report.since(piece.start), report.since(piece.end), WORKERS, workers[one.place])


def _sizes(report: Report) -> Iterator[Record]:
    counted: tuple[tuple[str, Steps], ...] = (
        ("workers in the world", report.world),
        ("workers offered", report.offered),
    )
    for name, steps in counted:
        for time, count in zip(steps.times, steps.counts, strict=False):
            yield {"ph": "C", "name": name, "ts": time * 1e6, "pid": RUN, "args": {"workers": count}}


def _flows(report: Report, workers: dict[str, int]) -> Iterator[Record]:
    """Yield, for each notice that a change answers, its slice and the flow from it to the change's end."""
    by_generation = {change.generation: change for change in report.ledger.changes}
    notices: dict[str, float] = {}
    number = 0
    for event in report.ledger.account.facts.events:
        if isinstance(event, Notice):
            notices[event.worker] = event.time
        elif isinstance(event, ReconfigurationCommitted | ReconfigurationAborted) and event.cause == "notice":
            change = by_generation.get(event.generation)
            for name in event.leavers:
                if change is not None and name in notices and place_of(name) in workers:
                    number += 1
                    yield from _flow(report, change, number, notices[name], workers[place_of(name)])


def _flow(report: Report, change: Change, number: int, noticed: float, track: int) -> Iterator[Record]:
    flow = {"name": "notice to commit", "cat": "notice", "id": number}
    at = report.since(noticed)
    yield _slice("notice", at, at + 1e-4, WORKERS, track)
    yield {**flow, "ph": "s", "ts": at * 1e6, "pid": WORKERS, "tid": track}
    yield {**flow, "ph": "t", "ts": report.since(change.started) * 1e6, "pid": RUN, "tid": CHANGES}
    end = max(change.started, change.ended - 1e-6)
    yield {**flow, "ph": "f", "bp": "e", "ts": report.since(end) * 1e6, "pid": RUN, "tid": CHANGES}
