"""Changes: phases of a reconfiguration, hidden and exposed."""

from __future__ import annotations

import pytest
from ledger_stories import Story

from liver_slurm.observability.ledger.account import make_account
from liver_slurm.observability.ledger.changes import Change, find_changes
from liver_slurm.rundir import events as e


def changes(story: Story) -> tuple[Change, ...]:
    return find_changes(make_account(story.facts()))


def grown(**options: bool) -> Story:
    story = Story(**options)
    story.start(1.0, 1.0, 1.0)
    story.train(3)
    if story.detailed:
        story.say(e.StandbyJobChanged(job_id="1", state="pending", partition="night"))
    story.now += 3.0
    story.arrive(2, 4.0)
    story.now += 0.25
    story.change(0.5)
    story.train(4, first=0.3)
    return story


def test_a_standbys_way_is_hidden_and_the_pause_is_not() -> None:
    (change,) = changes(grown())
    phases = {phase.name: (phase.hidden_s, phase.exposed_s) for phase in change.phases}
    assert [*phases] == ["decision", "queue", "start", "bootstrap", "groups", "plan", "stream", "cutover", "first_step"]
    assert phases["decision"] == (pytest.approx(0.25), 0.0)
    assert phases["queue"] == (pytest.approx(3.0), 0.0)
    assert phases["start"] == (pytest.approx(2.0), 0.0)
    assert phases["bootstrap"] == (pytest.approx(2.0), 0.0)
    assert phases["groups"] == (pytest.approx(0.4), 0.0)
    assert phases["plan"] == (pytest.approx(0.1), 0.0)
    assert phases["stream"] == (pytest.approx(0.3), 0.0)
    assert phases["cutover"] == (0.0, pytest.approx(0.5 + 0.05 + 0.025))
    # The gate is a part of the first step, so what it takes is not counted twice.
    assert phases["first_step"] == (0.0, pytest.approx(0.3 - 0.05))
    assert change.exposed_s == pytest.approx(0.575 + 0.25)
    assert (change.before, change.after) == (2, 3)


def test_what_older_versions_did_not_write_is_left_out() -> None:
    (change,) = changes(grown(detailed=False))
    assert [phase.name for phase in change.phases][:2] == ["decision", "groups"]


def test_a_decision_is_counted_from_the_notice() -> None:
    story = grown()
    story.notice("standby-1-0")
    noticed = story.now
    story.now += 0.125
    story.change(0.1, "notice", ("standby-1-0",))
    change = changes(story)[-1]
    assert change.noticed == pytest.approx(noticed)
    assert change.phases[0].name == "decision"
    assert change.phases[0].hidden_s == pytest.approx(0.125)


def test_a_world_that_was_given_up_cost_training_nothing() -> None:
    story = grown()
    story.arrive(0, 1.0)
    story.change(0.0, commit=False)
    change = changes(story)[-1]
    assert not change.committed
    assert change.exposed_s == 0.0
    assert change.hidden_s == pytest.approx(1.01)
