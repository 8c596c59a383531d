"""Runs for tests of the report."""

from __future__ import annotations

from collections.abc import Sequence

from ledger_stories import Story

from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.report.model import Report, make_report
from liver_slurm.rundir import events as e
from liver_slurm.rundir.validation import ValidationMetrics


def grown_and_shrunk(changes: int = 1, reason: str = "told") -> Story:
    """A run of two workers that grows by one and, after a notice, shrinks again, so many times."""
    story = Story()
    story.start(10.0, 16.0, 4.0)
    story.say(e.CapacityChanged(workers={"scavenger": 2}))
    for number in range(changes):
        story.train(40)
        story.arrive(0, 3.0)
        story.change(0.25)
        story.train(40)
        name = f"standby-{number + 1}-0"
        story.notice(name)
        story.now += 0.5
        story.change(0.04, "notice", (name,))
        story.now += 0.1
        story.leave(name)
    story.train(20)
    story.end()
    for index, row in enumerate(story.rows):
        row["loss"] = 5.0 - index / 1000
    story.events = [
        type(event)(**{**{name: getattr(event, name) for name in event.__struct_fields__}, "reason": reason})
        if isinstance(event, e.ReconfigurationCommitted)
        else event
        for event in story.events
    ]
    return story


def often_changed(number: int, steps: int = 2) -> Story:
    """A run that grows and shrinks in turns."""
    story = Story()
    story.start(1.0, 1.0, 1.0)
    for index in range(number):
        story.train(steps)
        if index % 2:
            story.change(0.01, "request", (story.world[-1],))
        else:
            if not story.idle:
                story.arrive(0, 0.0)
            story.change(0.01)
    return story


def validated(at: float, loss: float) -> ValidationMetrics:
    """A validation that ended at a moment."""
    return ValidationMetrics(
        step=1, loss=loss, perplexity=1.0, tokens=1, samples=1, best_step=1, best_loss=loss, since_best=0, seconds=0.1,
        generation=0, layout="tp1pp1dp2", end=at,
    )  # fmt: skip


def report(story: Story, undisturbed: Story | None = None, validations: Sequence[ValidationMetrics] = ()) -> Report:
    """The report of a story."""
    other = undisturbed.facts().steps if undisturbed is not None else None
    return make_report(make_ledger(story.facts(run="/runs/gpt-tiny-1")), other, validations)
