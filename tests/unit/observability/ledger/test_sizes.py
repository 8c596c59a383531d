"""Sizes over time: world, held, offered."""

from __future__ import annotations

from ledger_stories import Story

from liver_slurm.observability.ledger.account import make_account
from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.observability.ledger.sizes import Sizes, find_sizes
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
