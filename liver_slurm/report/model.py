"""What the report shows, as numbers and words: a run's ledger made small enough to look at. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.changes import Change
from liver_slurm.observability.ledger.document import Ledger
from liver_slurm.observability.ledger.sizes import Steps
from liver_slurm.observability.ledger.step_table import Floats, StepTable
from liver_slurm.report.words import count, duration, percent, times
from liver_slurm.rundir.validation import ValidationMetrics

POINTS = 600
"""Points of a curve at most; more than a screen has room for."""
TOGETHER = 1 / 40
"""Part of the run's length below which two changes in one direction are one mark."""
MARKED = 60
"""Marks at most that are drawn one by one; of more, parts of the run say how many there were."""


@dataclass(frozen=True)
class Curve:
    """A curve over time, in seconds since the run's creation."""

    times: Floats
    values: Floats


@dataclass(frozen=True)
class Mark:
    """One change, or several that are too close to tell apart. Times are seconds since the run's creation."""

    time: float
    before: int
    after: int
    cost_s: float
    """What training lost by it."""
    changes: tuple[Change, ...]

    @property
    def grows(self) -> bool:
        """Whether the world is larger after it."""
        return self.after > self.before

    @property
    def shrinks(self) -> bool:
        """Whether the world is smaller after it."""
        return self.after < self.before


@dataclass(frozen=True)
class Part:
    """A part of the run's length with all of its changes."""

    middle: float
    """Seconds since the run's creation."""
    grew: int
    shrank: int
    reshaped: int
    cost_s: float


@dataclass(frozen=True)
class Spread:
    """A count that changes more often than can be drawn: for each of several moments what it was around it."""

    times: Floats
    """Seconds since the run's creation."""
    least: Floats
    mean: Floats
    most: Floats


@dataclass(frozen=True)
class Report:
    """All that pictures and page are made of."""

    ledger: Ledger
    length: float
    """Seconds from the run's creation to its end."""
    world: Steps
    offered: Steps
    """Both with times in seconds since the run's creation."""
    changes: tuple[Change, ...]
    """Those that were committed."""
    loss: Curve
    undisturbed: Curve | None
    """Loss of the undisturbed run at the same steps, at the times of this one; None: none was given."""
    difference: float | None
    """Largest relative difference of the two."""
    tokens: Curve
    """Tokens a second."""
    validations: Curve
    """Loss of each validation."""

    def since(self, time: float) -> float:
        """Return a moment as seconds since the run's creation."""
        return time - self.ledger.account.facts.created


def make_report(
    ledger: Ledger, undisturbed: StepTable | None = None, validations: Sequence[ValidationMetrics] = ()
) -> Report:
    """Make the report of a run.

    Args:
        undisturbed: steps of the same job that was never resized.
        validations: of the run.
    """
    facts = ledger.account.facts
    created, steps = facts.created, facts.steps
    loss, other, difference = _losses(steps, created, undisturbed)
    return Report(
        ledger=ledger,
        length=max(ledger.wall_s, 1e-3),
        world=_shifted(ledger.sizes.world, created),
        offered=_shifted(ledger.sizes.offered, created),
        changes=tuple(change for change in ledger.changes if change.committed),
        loss=loss,
        undisturbed=other,
        difference=difference,
        tokens=_tokens(steps, created, ledger.wall_s),
        validations=_thinned(
            np.array([one.end - created for one in validations]), np.array([one.loss for one in validations])
        ),
    )


def marks(report: Report) -> list[Mark]:
    """Return the changes as marks; those in one direction that are too close to tell apart are one."""
    found: list[Mark] = []
    for change in report.changes:
        time = report.since(change.cutover)
        last = found[-1] if found else None
        if last is not None and time - report.since(last.changes[-1].cutover) < report.length * TOGETHER:
            both = (last.after - last.before, change.after - change.before)
            if both[0] * both[1] > 0:
                cost_s = last.cost_s + change.exposed_s
                found[-1] = Mark(last.time, last.before, change.after, cost_s, (*last.changes, change))
                continue
        found.append(Mark(time, change.before, change.after, change.exposed_s, (change,)))
    return found


def parts(report: Report, number: int) -> list[Part]:
    """Return so many equal parts of the run's length."""
    inside: list[list[Change]] = [[] for _ in range(number)]
    for change in report.changes:
        inside[min(number - 1, max(0, int(report.since(change.cutover) / report.length * number)))].append(change)
    return [
        Part(
            middle=(index + 0.5) * report.length / number,
            grew=sum(change.after > change.before for change in changes),
            shrank=sum(change.after < change.before for change in changes),
            reshaped=sum(change.after == change.before for change in changes),
            cost_s=sum(change.exposed_s for change in changes),
        )
        for index, changes in enumerate(inside)
    ]


def spread(steps: Steps, number: int) -> Spread:
    """Return a count at so many moments, evenly over its time: least, mean and most of what it was around each."""
    times, counts = np.array(steps.times), np.array(steps.counts, dtype=np.float64)
    edges = np.linspace(times[0], times[-1], number + 1)
    summed = np.concatenate([[0.0], np.cumsum(counts * np.diff(times))])
    mean = np.diff(np.interp(edges, times, summed)) / np.diff(edges)
    first = np.searchsorted(times, edges[:-1], side="right") - 1
    last = np.maximum(np.searchsorted(times, edges[1:], side="left"), first + 1)
    around = [counts[begin:end] for begin, end in zip(first.tolist(), last.tolist(), strict=True)]
    least, most = np.array([one.min() for one in around]), np.array([one.max() for one in around])
    return Spread((edges[:-1] + edges[1:]) / 2, least, mean, most)


def sentence(report: Report) -> str:
    """Say in a sentence or two what became of the world and what that cost; strangers read it first."""
    if not report.changes:
        return "The run never changed its size."
    ways = {
        "grew": sum(change.after > change.before for change in report.changes),
        "shrank": sum(change.after < change.before for change in report.changes),
        "changed its layout": sum(change.after == change.before for change in report.changes),
    }
    told = [f"{what} {times(often)}" for what, often in ways.items() if often]
    listed = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    sizes = [size for change in report.changes for size in (change.before, change.after)]
    span = f", between {min(sizes)} and {max(sizes)} workers" if min(sizes) < max(sizes) else ""
    lost = cost(report)
    share = f"{percent(lost / report.length)} of {duration(report.length)}"
    return f"The run {listed}{span}. That cost {duration(lost)} of training in all, {share}."


def cost(report: Report) -> float:
    """Return what training lost by all changes, in seconds."""
    return sum(change.exposed_s for change in report.changes)


def comparison(report: Report) -> str:
    """Say what the same run would be under checkpoint and restart."""
    other, ledger = report.ledger.restarted, report.ledger
    if not report.changes or other.restart_s is None:
        return ""
    made = count(len(report.changes), "change")
    ettrs = f"ETTR {percent(other.ettr)} in place of {percent(ledger.ettr)}"
    slower = f"lose {duration(other.slower_s)} on fewer workers" if other.slower_s > 0.0 else ""
    if not other.restarts:
        then = f", and training would {slower}" if slower else ""
        return f"With a checkpoint and a restart for each, none of these {made} would be worth it{then}: {ettrs}."
    how = f"for each of these {made}" if other.restarts == len(report.changes) else f"in place of these {made}"
    seldom = "" if other.grows else ", and growth only where it must restart"
    lost = " and ".join([f"stand still for {duration(other.stopped_s)}", *([slower] if slower else [])])
    return f"With a checkpoint and a restart {how}{seldom}, training would {lost}: {ettrs}."


def tiles(report: Report) -> list[tuple[str, str, str]]:
    """Return the figures of the first screen: value, name, and what it is made of."""
    ledger, other = report.ledger, report.ledger.restarted
    run = ledger.account.of_the_run()
    found = [
        (
            percent(ledger.ettr),
            "ETTR",
            f"{duration(run.get(Cause.STEP, 0.0))} productive of {duration(ledger.wall_s)}, queue included",
        )
    ]
    if report.changes and other.restart_s is not None:
        lost = duration(other.stopped_s + other.slower_s)
        found.append((percent(other.ettr), "ETTR with restarts", f"{lost} lost, {count(other.restarts, 'restart')}"))
    if report.changes:
        mean = cost(report) / len(report.changes)
        found.append(
            (
                duration(cost(report)),
                "lost to changes",
                f"{duration(mean)} each, {count(len(report.changes), 'change')}",
            )
        )
    known = "" if ledger.sizes.known else "; beyond what was held, none is on record"
    found.append((percent(ledger.capacity_goodput), "capacity goodput", f"of the device-seconds offered{known}"))
    return found


def _shifted(steps: Steps, created: float) -> Steps:
    return Steps(tuple(time - created for time in steps.times), steps.counts)


def _thinned(times: Floats, values: Floats) -> Curve:
    """Return a curve of :data:`POINTS` means; values that are not finite are left out."""
    finite = np.isfinite(values)
    times, values = times[finite], values[finite]
    if len(values) <= 2 * POINTS:
        return Curve(times, values)
    edges = np.linspace(0, len(values), POINTS + 1).astype(np.int64)
    sizes = np.diff(edges)
    return Curve(np.add.reduceat(times, edges[:-1]) / sizes, np.add.reduceat(values, edges[:-1]) / sizes)


def _losses(
    steps: StepTable, created: float, undisturbed: StepTable | None
) -> tuple[Curve, Curve | None, float | None]:
    times = steps.end - created
    loss = _thinned(times, steps.loss)
    if undisturbed is None:
        return loss, None, None
    _, ours, theirs = np.intersect1d(steps.step, undisturbed.step, assume_unique=True, return_indices=True)
    if not len(ours):
        return loss, None, None
    expected = undisturbed.loss[theirs]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(steps.loss[ours] - expected) / np.abs(expected)
    finite = relative[np.isfinite(relative)]
    return loss, _thinned(times[ours], expected), float(finite.max()) if len(finite) else None


def _tokens(steps: StepTable, created: float, length: float) -> Curve:
    """Return tokens a second in bins of several steps each; a bin in which nothing was trained is 0."""
    if not len(steps) or length <= 0.0:
        return Curve(np.zeros(0), np.zeros(0))
    usual = float(np.median(np.diff(steps.end))) if len(steps) > 1 else length
    bins = int(min(POINTS / 2, max(1.0, length / max(4.0 * usual, 1e-6))))
    edges = np.linspace(0.0, length, bins + 1)
    # A step's tokens are spread over its time, so that a bin's border inside a step makes no spike.
    done = np.concatenate([[0.0], np.cumsum(steps.tokens, dtype=np.float64)])
    at = np.stack([steps.start - created, steps.end - created], axis=1).reshape(-1)
    amount = np.stack([done[:-1], done[1:]], axis=1).reshape(-1)
    reached = np.interp(edges, at, amount)
    return Curve((edges[:-1] + edges[1:]) / 2, np.diff(reached) / np.diff(edges))


def largest_first(changes: Sequence[Change], most: int) -> list[Change]:
    """Return the changes that cost the most, at most so many, in the order of time."""
    kept = sorted(changes, key=lambda change: -change.exposed_s)[:most]
    return sorted(kept, key=lambda change: change.started)
