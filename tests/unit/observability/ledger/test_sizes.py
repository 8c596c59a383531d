"""Sizes over time: world, held, offered."""

from __future__ import annotations

import pytest
from ledger_stories import Story

from liver_slurm.observability.ledger.account import make_account
from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.observability.ledger.sizes import Sizes, Steps, find_sizes
from liver_slurm.rundir import events as e


def sizes(story: Story) -> Sizes:
    return find_sizes(make_account(story.facts()))


def test_idle_nodes_count_as_offered_as_far_as_the_job_file_goes() -> None:
    story = Story()
    story.start(10.0, 1.0, 1.0)
    began = story.now
    story.say(e.CapacityChanged(workers={"night": 3, "scavenger": 6}))
    story.train(5)
    story.arrive(0, 2.0)
    held = story.now
    story.say(e.CapacityChanged(workers={"night": 0}))
    story.train(5)
    found = sizes(story)
    assert found.known
    assert found.held.at(began - 11.5) == 0  # in the queue
    assert found.held.at(began) == 2
    assert found.offered.at(began + 1) == 2 + 4  # of 9, the run may have 4
    assert found.offered.at(held - 1) == 2 + 4  # one of them is held by then
    assert found.offered.at(held + 1) == 3
    assert found.world.at(held + 1) == 2


def test_without_a_word_on_capacity_what_is_held_was_offered() -> None:
    story = Story(detailed=False)
    story.start(1.0, 1.0, 1.0)
    story.train(5)
    found = sizes(story)
    assert not found.known
    assert found.offered.integral() == found.held.integral() > 0


def test_capacity_goodput_falls_with_nodes_that_are_left_idle() -> None:
    ledgers = []
    for idle in (0, 2):
        story = Story()
        story.start(0.0, 1.0, 1.0)
        story.say(e.CapacityChanged(workers={"night": idle}))
        story.train(20)
        story.end()
        ledgers.append(make_ledger(story.facts()))
    assert ledgers[0].ettr == ledgers[1].ettr
    assert ledgers[1].capacity_goodput < 0.6 * ledgers[0].capacity_goodput


def test_nothing_is_offered_while_nobody_looks() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.say(e.CapacityChanged(workers={"night": 4}))
    story.train(10)
    died = story.now
    story.die(36_000.0, 10, 1.0)
    back = story.now
    story.train(10)
    story.say(e.CapacityChanged(workers={"night": 1}))
    looked = story.now
    story.train(10)
    found = sizes(story)
    assert found.offered.at(died - 1) == 2 + 4
    assert found.offered.at(died + 100) == 0
    assert found.offered.at(back + 1) == 2  # whoever saw four idle ones is gone
    assert found.offered.at(looked + 1) == 2 + 1


def test_looks_at_the_cluster_are_folded_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    for number in range(2000):
        story.now += 5.0
        story.say(e.CapacityChanged(workers={"night": number % 2 + 1}))
    account = make_account(story.facts())
    asked = 0
    at = Steps.at

    def counting(steps: Steps, time: float) -> int:
        nonlocal asked
        asked += 1
        return at(steps, time)

    monkeypatch.setattr(Steps, "at", counting)
    found = find_sizes(account)
    assert asked <= 2 * 2000
    assert len(found.offered.times) <= 2 * 2000
    assert found.offered.at(story.now - 1) == 2 + 1
