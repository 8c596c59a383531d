"""Expected ETTR."""

from __future__ import annotations

import pytest
from ledger_stories import Story

from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.document import Ledger, make_ledger
from liver_slurm.rundir import events as e


def changed(count: int, pause: float) -> Ledger:
    """A run of about 100 steps of one second with so many changes, which ends without a word."""
    story = Story()
    story.start(5.0, 16.0, 4.0)
    for number in range(count):
        story.train(100 // count - 2)
        if number == 0:
            story.say(e.CheckpointWritten(step=story.trained, seconds=3.0, stall_s=0.0, path="p"))
        story.arrive(0, 0.0)
        story.change(pause)
    story.train(2)
    return make_ledger(story.facts())


def test_the_closed_form_meets_what_was_measured() -> None:
    ledger = changed(count=4, pause=0.5)
    expected = ledger.expected
    assert expected.changes == 4
    assert expected.between_s == pytest.approx(26.0, rel=0.05)
    assert expected.u0_s == pytest.approx(0.575, rel=0.05)
    assert expected.ettr == pytest.approx(1 - 0.575 / 26.0, abs=0.002)
    assert expected.measured == pytest.approx(expected.ettr, abs=0.01)


def test_a_run_without_changes_expects_what_it_has() -> None:
    story = Story()
    story.start(5.0, 16.0, 4.0)
    story.train(20)
    ledger = make_ledger(story.facts())
    assert ledger.expected.between_s is None
    assert ledger.expected.ettr == 1.0
    assert ledger.restarted.ettr == pytest.approx(ledger.ettr)


def test_meta_s_form_has_the_checkpoints_in_it() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    for _ in range(3):
        story.train(10)
        story.say(e.CheckpointWritten(step=story.trained, seconds=3.0, stall_s=0.5, path="p"))
        story.now += 0.5
    story.train(5)
    expected = make_ledger(story.facts()).expected
    assert expected.every_s == pytest.approx(10.6, abs=0.01)
    assert expected.ettr == pytest.approx(1 / (1 + 0.5 / 10.6), abs=1e-4)


def test_a_loss_is_no_change_and_costs_what_the_timeline_says() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.train(20)
    story.arrive(0, 1.0)
    story.change(0.5)
    story.train(20)
    story.lose("standby-1-0", found=0.5, recovery=2.0)
    story.train(20)
    ledger = make_ledger(story.facts())
    assert (ledger.expected.changes, ledger.expected.losses) == (1, 1)
    run = ledger.account.of_the_run()
    assert run[Cause.WASTED] == pytest.approx(0.91, abs=0.02)  # the step that was cut off, until the loss was found
    assert run[Cause.RECOVERY] == pytest.approx(2.0, abs=0.02)
    loss = ledger.changes[-1]
    assert (loss.cause, loss.before, loss.after) == ("loss", 3, 2)
    assert loss.exposed_s == pytest.approx(2.91, abs=0.03)
    assert [phase.name for phase in loss.phases] == ["recovery", "first_step"]
    assert ledger.expected.u0_s == pytest.approx((2.91 + 0.575) / 2, abs=0.03)
