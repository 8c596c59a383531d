"""The same run with checkpoints and restarts in place of its changes."""

from __future__ import annotations

import pytest
from ledger_stories import Story

from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.observability.ledger.restarting import Restarted
from liver_slurm.rundir import events as e


def grown(pays: bool, growths: int = 4, steps: int = 100) -> Story:
    """A run that grows so often, and trains so many steps in each world; in larger ones they are faster, if it pays."""
    story = Story()
    story.start(5.0, 16.0, 4.0)
    story.train(10)
    story.say(e.CheckpointWritten(step=story.trained, seconds=3.0, stall_s=0.0, path="p"))
    for number in range(growths):
        story.arrive(0, 0.0)
        story.change(0.05)
        story.train(steps, seconds=2.0 / (number + 3) if pays else 1.0)
    return story


def other(story: Story) -> Restarted:
    return make_ledger(story.facts()).restarted


def test_restarts_take_what_this_runs_own_start_took() -> None:
    ledger = make_ledger(grown(pays=True).facts())
    found = ledger.restarted
    assert found.restart_s == pytest.approx(20.0, abs=0.05)
    assert (found.save_s, found.saves) == (3.0, 1)
    assert (found.restarts, found.grows, found.slower_s) == (4, True, 0.0)
    assert found.stopped_s == pytest.approx(4 * 23.0, abs=0.5)
    assert found.ettr < ledger.ettr
    assert "median of 1" in found.assumption


def test_changes_that_come_during_a_restart_are_in_it() -> None:
    story = grown(pays=True, growths=20, steps=1)
    story.train(2000, seconds=0.2)
    found = other(story)
    changes = make_ledger(story.facts()).changes
    assert found.grows
    assert 0 < found.restarts <= (changes[-1].cutover - changes[0].cutover) / 23.0 + 1
    assert found.stopped_s == pytest.approx(found.restarts * 23.0, abs=0.5)


def test_growth_that_does_not_pay_is_left_out() -> None:
    story = grown(pays=False, growths=1, steps=0)
    story.train(40, seconds=0.8)
    name = story.world[-1]
    story.notice(name)
    story.change(0.05, "notice", (name,))  # whom the other run never took in
    story.train(10)
    found = other(story)
    assert (found.restarts, found.stopped_s, found.grows) == (0, 0.0, False)
    assert found.slower_s == pytest.approx(42 * 0.2, rel=0.05)
    assert "growth only where it restarts anyway" in found.assumption


def test_a_member_that_goes_makes_it_restart_and_grow() -> None:
    story = grown(pays=False, growths=1, steps=30)
    story.change(0.05, "notice", ("live-1",))
    found = other(story)
    assert (found.restarts, found.grows) == (1, False)


def test_after_a_loss_there_is_nothing_to_save() -> None:
    story = grown(pays=True, growths=1, steps=200)
    story.lose(story.world[-1], found=0.5, recovery=2.0)
    story.train(100)
    found = other(story)
    assert (found.restarts, found.grows) == (2, True)
    assert found.stopped_s == pytest.approx(2 * 20.0 + 3.0, abs=0.1)


@pytest.mark.parametrize("detailed", [True, False])
@pytest.mark.parametrize("killed", [True, False])
def test_a_start_that_came_to_nothing_is_no_part_of_a_restart(detailed: bool, killed: bool) -> None:
    story = Story(detailed=detailed)
    began = story.now = story.now + 5.0
    story.say(e.CoordinatorStarted(phase="starting", job_started=began if detailed else 0.0))
    story.now += 600.0
    if killed:
        story.say(e.CheckpointRefused(path="p", error="its last word"))
    else:
        story.say(e.Interrupted(reason="preempted", step=0))
    story.now += 100.0
    story.begin_again(0, 0, began, 20.0)
    story.train(100)
    story.end()
    # Older versions do not say when Slurm started the job, only when its coordinator began to serve, 5 s later.
    assert make_ledger(story.facts()).restarted.restart_s == pytest.approx(20.2 if detailed else 15.2, abs=0.01)
