"""From the event logs of runs to a table of decisions, and what came of each.

What a window has gained is taken from the event that was written when it ended. A run that finishes or fails within a
window is seen too: to leave it out would hide the very harm that taking can do. What is not seen is cut off by
something else: a log that ends, a person who cancels or asks for another size, a time limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from liver_slurm.advisor.rows import NOT_FOLLOWED, Header, Row
from liver_slurm.base.errors import BadInput
from liver_slurm.policy import features
from liver_slurm.policy.offer import WINDOWS
from liver_slurm.rundir import events as ev
from liver_slurm.rundir.event_log import read_events
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import find_run, read_run_info

AWAY = "the coordinator was away at the window's end"
LATE = 0.1
"""A window that was told of later than by this share of its length is not seen."""


@dataclass(frozen=True)
class Collected:
    """A table's rows, and what is not in it."""

    header: Header
    rows: tuple[Row, ...]
    runs: int
    left_out: Counter[str]
    """Decisions that are not in the table, by reason."""


@dataclass
class _Log:
    """What one run's event log says."""

    name: str
    run_dir: RunDir
    decided: list[ev.PolicyDecided] = field(default_factory=list)
    windows: dict[tuple[str, float], ev.DecisionWindow] = field(default_factory=dict)
    partitions: dict[str, str] = field(default_factory=dict)
    """Of each standby job."""
    requests: list[float] = field(default_factory=list)
    """When explicit resizes began."""
    ended: ev.RunEnded | None = None
    last: float = 0.0
    """Time of the last event."""
    goes_on: _Log | None = None
    """The run that was resumed from it."""
    root: str = ""


@dataclass(frozen=True)
class _Reached:
    """How far a run, or the one that goes on with it, has come by the end of a window."""

    step: int
    finished: float | None = None
    """When it had trained all steps; None: it had not."""


def collect(runs: Sequence[str], partition: str | None = None) -> Collected:
    """Read decisions out of runs' event logs.

    Args:
        runs: names, ids or directories of runs, or folders with an ``events.jsonl``.
        partition: only of offers in this one; None: of all.

    Raises:
        BadInput: there is no such run, no decision in any, or their features are of other versions.
    """
    logs = [_read(one) for one in dict.fromkeys(map(_run_dir, runs))]
    _chain(logs)
    rows, left_out, versions = [], Counter[str](), set()
    for log in logs:
        for said in log.decided:
            offer = _offer(said)
            where = ",".join(sorted({log.partitions.get(job, "") for job in offer.jobs} - {""}))
            if partition is not None and where != partition:
                left_out[f"not of partition {partition}"] += 1
            elif offer.id and said.step_seconds <= 0.0:
                left_out["the duration of a step was not known"] += 1
            else:
                versions.add(offer.features_version)
                rows.append(_row(log, said, where))
    if not rows:
        why = f" ({', '.join(left_out)})" if left_out else ""
        raise BadInput(f"no decision on an offer is in {len(logs)} runs{why}; run jobs with standby.policy explore")
    if len(versions) > 1:
        told = " and ".join(map(str, sorted(versions)))
        raise BadInput(f"features of versions {told} are in these runs; collect runs of one version at a time")
    header = Header(features_version=versions.pop(), windows_s=WINDOWS)
    return Collected(header, tuple(rows), len(logs), left_out)


def _run_dir(text: str) -> Path:
    path = Path(text)
    if RunDir(path).events.is_file():
        return path.resolve()
    run_dir = find_run(text)
    if not run_dir.events.is_file():
        raise BadInput(f"{run_dir.path}: has no event log yet")
    return run_dir.path.resolve()


def _read(path: Path) -> _Log:
    log = _Log(path.name, RunDir(path), root=path.name)
    for event in read_events(log.run_dir.events):
        log.last = max(log.last, event.time)
        if isinstance(event, ev.PolicyDecided) and isinstance(event.offer, ev.Offered):
            log.decided.append(event)
        elif isinstance(event, ev.DecisionWindow):
            log.windows.setdefault((event.offer, event.window_s), event)  # a second one is what a restart repeats
        elif isinstance(event, ev.StandbyJobChanged):
            log.partitions[event.job_id] = event.partition
        elif isinstance(event, ev.ReconfigurationStarted) and event.cause == "request":
            log.requests.append(event.time)
        elif isinstance(event, ev.RunEnded):
            log.ended = event
    return log


def _chain(logs: Sequence[_Log]) -> None:
    """Find which runs go on with which."""
    by_path = {log.run_dir.path: log for log in logs}
    for log in logs:
        if not log.run_dir.run_file.is_file():
            continue  # a simulated run
        before = by_path.get(Path(read_run_info(log.run_dir).resumed_from or ".").resolve())
        if before is not None and before is not log:
            before.goes_on = log
    for log in logs:
        after = log.goes_on
        while after is not None and after.root != log.root:
            after.root, after = log.root, after.goes_on


def _offer(said: ev.PolicyDecided) -> ev.Offered:
    assert isinstance(said.offer, ev.Offered)
    return said.offer


def _row(log: _Log, said: ev.PolicyDecided, partition: str) -> Row:
    offer = _offer(said)
    gains: list[float | None] = []
    reason = "" if offer.id else NOT_FOLLOWED
    for window in WINDOWS:
        found = _gain(log, said, window) if not reason else None
        if isinstance(found, str):
            reason, found = found, None
        gains.append(found)
    return Row(
        decision=offer.id or f"{log.name}@{said.time:.3f}",
        run=log.root,
        time=said.time,
        policy=said.policy,
        partition=partition,
        action=offer.action,
        propensity=offer.propensity,
        features={name: offer.features.get(name) for name in features.MEANINGS},
        gain_s=tuple(gains),
        reason=reason,
    )


def _gain(log: _Log, said: ev.PolicyDecided, window: float) -> float | str:
    """Return what a window has gained, or why that is not seen."""
    offer, end = _offer(said), said.time + window
    if any(said.time < time <= end for time in log.requests):
        return "a resize on request"
    told = log.windows.get((offer.id, window))
    if told is not None:
        return told.gained_s if told.after_s <= window * (1.0 + LATE) else AWAY
    reached = _reached(log, end)
    if isinstance(reached, str):
        return reached
    passed = window if reached.finished is None else reached.finished - said.time
    return (reached.step - offer.step) * said.step_seconds - passed


def _reached(log: _Log, end: float) -> _Reached | str:
    """Return how far a run has come by a moment for which it has no event, or why that is not known."""
    if log.ended is None or log.ended.time >= end:
        return "the log ends" if log.last < end else "the end of the window was not told"
    if log.ended.outcome == "finished":
        return _Reached(log.ended.step, log.ended.time)
    after = log.goes_on
    if after is None:
        return _Reached(log.ended.step) if log.ended.outcome == "failed" else log.ended.outcome
    if after.ended is not None and after.ended.time < end:
        return _reached(after, end)
    steps = list(read_metrics(after.run_dir.metrics)) if after.run_dir.metrics.is_file() else []
    if max((one.end for one in steps), default=after.last) < end:
        return "the log ends"
    return _Reached(max((one.step for one in steps if one.end <= end), default=log.ended.step))
